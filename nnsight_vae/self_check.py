"""Which modules of a model are no sites, and what that means: read off the one run that a VAE makes when it is wrapped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nnsight_vae.probe import Firing

_NEVER = (
    "Never run",
    "not needed from x to its reconstruction, or used through a method or their weights, past their forward, as codebooks are; they "
    "cannot be read or patched",
)
_REPEATED = (
    "Run more than once a forward",
    "one activation used in several places, or work done in slices, tiles or chunks. A name does not say which run is meant; read "
    "what comes before or after",
)
_OTHER = ("Return no single tensor with a row per example", "read their parts")
_SHOWN = 8  # modules listed of each kind


@dataclass(frozen=True)
class SelfCheck:
    """What the run at wrapping found beside the sites.

    Attributes:
        never: modules that did not run, themselves nor any part of them; the outermost of each.
        repeated: module -> how often it ran.
        other: module -> what it returned, where that is not one tensor with a row per example.

    Example:
        >>> print(SelfCheck((), {}, {"quantize": "tuple"}))
        Return no single tensor with a row per example: quantize, tuple (read their parts).
    """

    never: tuple[str, ...]
    repeated: dict[str, int]
    other: dict[str, str]

    @classmethod
    def of(cls, firings: Mapping[str, Firing], modules: Iterable[str]) -> SelfCheck:
        """From what fired, and the paths of all modules, of a wrapped model.

        Args:
            firings: module path inside the wrapper -> what the module did.
            modules: path of every module inside the wrapper.
        """
        own = {path.removeprefix("model."): firings.get(path) for path in modules if path.startswith("model.")}
        ran = {ancestor for path, firing in own.items() if firing for ancestor in _ancestors(path)}
        idle = {path: path.rpartition(".")[0] for path in own if path not in ran}
        return cls(
            tuple(path for path, around in idle.items() if around not in idle),
            {path: f.calls for path, f in own.items() if f and f.calls > 1},
            {path: f.returned for path, f in own.items() if f and f.calls == 1 and f.shape is None},
        )

    def __bool__(self) -> bool:
        """Whether any module is no site."""
        return bool(self.never or self.repeated or self.other)

    def __str__(self) -> str:
        lines = (
            (_NEVER, list(self.never)),
            (_REPEATED, [f"{path}, {calls} times" for path, calls in self.repeated.items()]),
            (_OTHER, [f"{path}, {returned}" for path, returned in self.other.items()]),
        )
        return "\n".join(f"{what}: {_listed(names)} ({meaning})." for (what, meaning), names in lines if names)


def _listed(names: list[str]) -> str:
    more = f"; and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return "; ".join(names[:_SHOWN]) + more


def _ancestors(path: str) -> list[str]:
    """The path itself and every module around it."""
    parts = path.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts) + 1)]
