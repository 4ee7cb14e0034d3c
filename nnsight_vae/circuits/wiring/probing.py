"""Short runs on a few copies of one example, with plain hooks, that tell which part of a model reaches which."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.distributions import Distribution

from nnsight_vae.circuits.wiring.contributions import Linear, port_axis
from nnsight_vae.engine import CHUNK_BYTES, MIN_ROWS
from nnsight_vae.errors import CircuitError, NnsightVaeError
from nnsight_vae.probe import Firing
from nnsight_vae.vae import VAE

_FAR = (
    100.0  # a replaced unit goes this many times past the largest of its layer, both ways: that opens and shuts gates
)
_SAME = 1e-5  # relative tolerance of "no change": between two columns only rounding can differ


class _Heard(Exception):  # not an error: a run is over once what it was for has been heard
    """Ends a run."""


class Prober:
    """Replaces what some columns give, holds all others at their clean values, and hears what readers take in.

    With all other columns held, a change can only go straight from column to reader, and a gate that is shut for the example
    further on hides nothing.

    Attributes:
        sources: path -> module whose output may be a column: the input, linear layers, the sample.
        readers: path -> module whose input is made from columns: the sources but the input, and where the readout reads.
        opaque: linear layers whose output cannot be a column, since they fire several times or give no tensor of examples.
    """

    def __init__(self, vae: VAE, x: Tensor, eps: Tensor | None, reads: str) -> None:
        self.vae, self.x, self.layout = vae, x, vae.layout(x)
        # noise of exactly 0 would hide what is multiplied by it
        self.eps = None if eps is None else torch.where(eps == 0, 0.5, eps).to(x)
        self.end = self.layout.firings[self.layout.paths[reads]]
        before = [f for f in self.layout.firings.values() if f.finished < self.end.started]
        layers = [f for f in before if isinstance(f.module, Linear)]
        fit = {f.path for f in layers if f.calls == 1 and f.shape is not None}
        taps = {"tap_input"} | ({"latent.z"} if eps is not None else set())
        chosen = sorted((f for f in before if f.path in fit | taps), key=lambda f: f.started)
        self.sources = {f.path: f for f in chosen}
        self.readers = {f.path: f for f in [*chosen[1:], self.end]}
        self.opaque = [f for f in layers if f.path not in fit]
        self.clean = self._hear(x, {}, outputs=tuple(self.sources))

    def direct(self, path: str) -> list[str]:
        """The readers that a column reaches without passing another one, in the order in which they run."""

        def poke(value: Tensor) -> Tensor:
            noise = _noise(value)
            far = _FAR * max(1.0, float(value.abs().max()))
            return torch.stack([value[0], value[0] + far, value[0] - far, noise, -noise, far * noise, -far * noise])

        later = [r for r, f in self.readers.items() if f.started > self.sources[path].finished]
        heard = self._hear(self.x.expand(7, *self.x.shape[1:]), self._held(path, poke), inputs=later)
        return [reader for reader in later if bool(_differs(heard[reader][1:], heard[reader][:1]).any())]

    def reach(
        self,
        path: str,
        inputs: Sequence[str] = (),
        outputs: Sequence[str] = (),
        groups: Sequence[Sequence[int]] | None = None,
    ) -> list[Bool[Tensor, "group port"]]:
        """What changes at some modules' inputs, then at some modules' outputs, when units of a column are replaced.

        Args:
            path: of the column.
            inputs: paths of readers.
            outputs: paths of modules.
            groups: units that are replaced together; None: each unit alone.
        """
        source = self.sources[path]
        sets = [(unit,) for unit in range(units_of(source))] if groups is None else groups
        largest = max(torch.Size(f.shape[1:]).numel() for f in self.layout.firings.values() if f.shape)
        step = max(MIN_ROWS, CHUNK_BYTES // (2 * largest * self.x.element_size()))
        parts: list[list[Tensor]] = []
        for start in range(0, len(sets), step):
            chosen = sets[start : start + step]
            rows = torch.tensor([row for row, units in enumerate(chosen) for _ in units])
            columns = torch.tensor([unit for units in chosen for unit in units])

            def poke(value: Tensor, k: int = len(chosen), rows: Tensor = rows, columns: Tensor = columns) -> Tensor:
                view = value.repeat(2 * k + 1, *[1] * (value.ndim - 1)).movedim(source.axis, 1)
                far = _FAR * max(1.0, float(value.abs().max()))
                view[rows, columns] = far
                view[rows + k, columns] = -far
                return view.movedim(1, source.axis)  # the last row is left as it is

            x = self.x.expand(2 * len(chosen) + 1, *self.x.shape[1:])
            heard = self._hear(x, self._held(path, poke), inputs=inputs, outputs=outputs)
            found = []
            for at, value in [(at, heard[at]) for at in inputs] + [(at, heard[f"{at}>"]) for at in outputs]:
                firing = self.layout.firings[at]
                ports = value.movedim(port_axis(firing.module, value) if at in inputs else firing.axis, 1)
                ports = ports.reshape(len(x), ports.shape[1], -1)
                changed = _differs(ports[:-1], ports[-1:]).any(-1)
                found.append(changed.unflatten(0, (2, len(chosen))).any(0).cpu())
            parts.append(found)
        return [torch.cat(of_reader) for of_reader in zip(*parts, strict=True)]

    def matters(self, firing: Firing, to: Sequence[str]) -> bool:
        """Whether what a module gives changes what some readers take in, all columns held."""
        clean = self._hear(self.x, self._held(), inputs=to)
        noised = self._hear(self.x, {**self._held(), firing.path: _noise_like}, inputs=to)
        return any(bool(_differs(noised[reader], clean[reader]).any()) for reader in to)

    def _held(
        self, path: str | None = None, poke: Callable[[Tensor], Tensor] | None = None
    ) -> dict[str, Callable[[Tensor], Tensor]]:
        """Replacements that hold every column at its clean value, but one that is poked."""
        held = {p: _repeated(self.clean[f"{p}>"]) for p in self.sources}
        if path is not None and poke is not None:
            held[path] = _instead(poke(self.clean[f"{path}>"]))
        return held

    def _hear(
        self,
        x: Tensor,
        replaced: Mapping[str, Callable[[Tensor], Tensor]],
        inputs: Sequence[str] = (),
        outputs: Sequence[str] = (),
    ) -> dict[str, Tensor]:
        """What some modules take in (under their path) and others give (path + ">") when some outputs are replaced."""
        heard: dict[str, Tensor] = {}
        n_expected = len(inputs) + len(outputs)

        def hear(key: str, value: Tensor) -> None:
            heard[key] = value.clone()
            if len(heard) == n_expected:
                raise _Heard

        handles = []
        for path, replace in replaced.items():
            handles.append(
                self.layout.firings[path].module.register_forward_hook(
                    lambda module, args, value, replace=replace: replace(value)
                )
            )
        for path in inputs:
            handles.append(
                self.layout.firings[path].module.register_forward_pre_hook(
                    lambda module, args, kwargs, path=path: hear(
                        path, args[0] if args else next(iter(kwargs.values()))
                    ),
                    with_kwargs=True,
                )
            )
        for path in outputs:
            handles.append(
                self.layout.firings[path].module.register_forward_hook(
                    lambda module, args, value, path=path: hear(f"{path}>", value)
                )
            )
        noise = None if self.eps is None else self.eps.expand(len(x), *self.eps.shape[1:])
        try:
            with torch.no_grad(), _unvalidated():
                self.vae(x, eps=noise)
        except _Heard:
            pass
        except NnsightVaeError:
            raise
        except Exception as error:  # whatever the model's own code makes of values that it never sees otherwise
            raise CircuitError(
                f"{type(self.vae.module).__name__} does not run with other activations in place of its own, as it must to tell which unit "
                f"reaches which: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
            ) from error
        finally:
            for handle in handles:
                handle.remove()
        missing = [path for path in (*inputs, *(f"{path}>" for path in outputs)) if path not in heard]
        if missing:
            raise CircuitError(f"{missing[0].removeprefix('model.')!r} was not reached when the model ran again.")
        return heard


@contextmanager
def _unvalidated() -> Iterator[None]:
    """Distributions that the model makes take any parameters: a scale that is a softplus may be 0 where other values are in place."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


def units_of(firing: Firing) -> int:
    """Number of units that a module gives."""
    return firing.shape[firing.axis] if firing.shape else 0


def by_group(reach: Bool[Tensor, "unit port"], groups: Sequence[Sequence[int]]) -> Bool[Tensor, "node port"]:
    """What changes with any unit of each node."""
    return torch.stack([reach[list(units)].any(0) for units in groups])


def named(module: nn.Module, path: str) -> str:
    """A module for a message."""
    return f"{path.removeprefix('model.')!r} ({type(module).__name__})"


def _repeated(clean: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda given: clean.expand_as(given).clone()


def _instead(value: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda _: value.clone()


def _differs(values: Tensor, clean: Tensor) -> Tensor:
    return ~((values - clean).abs() <= _SAME * (1 + clean.abs()))  # what is not a number differs too


def _noise(like: Tensor) -> Tensor:
    """Standard normal times 3, seeded, of the shape of one example."""
    return (torch.randn(like.shape[1:], generator=torch.Generator().manual_seed(0)) * 3).to(like)


def _noise_like(value: Tensor) -> Tensor:
    return (torch.randn(value.shape, generator=torch.Generator().manual_seed(0)) * 3).to(value)
