"""Layout: the sites of a VAE for one input shape, and the module paths that serve them."""

from __future__ import annotations

from dataclasses import dataclass

from nnsight_vae.probe import Firing
from nnsight_vae.sites import Site, Sites, Stage

_TAPS: dict[str, Stage] = {"tap_input": "input", "tap_output": "output"}


@dataclass(frozen=True)
class Layout:
    """What one probe of a VAE found.

    Attributes:
        firings: module path (inside the wrapper) -> what the module did, in order of completion.
        sites: the addressable tensors, in execution order.
        paths: site name -> module path.
    """

    firings: dict[str, Firing]
    sites: Sites
    paths: dict[str, str]

    @classmethod
    def of(cls, firings: dict[str, Firing]) -> Layout:
        """The layout of a probe; modules that fired more than once, or whose output is not one row per example, are no sites."""
        reach = firings["latent.mu"].finished
        found = {f.path: site for f in firings.values() if (site := _site(f, reach)) is not None}
        return cls(firings, Sites(list(found.values())), {site.name: path for path, site in found.items()})


def site_name(path: str) -> str:
    """The site a module path serves: the user's own path, prefixed `model.` where that would collide with our names."""
    if path in _TAPS:
        return _TAPS[path]
    name = path.removeprefix("model.")
    taken = name in _TAPS.values() or name.split(".")[0] == "latent"
    return path if taken else name


def _site(firing: Firing, posterior: int) -> Site | None:
    if firing.shape is None or firing.calls != 1:
        return None
    name, root = site_name(firing.path), firing.path.split(".")[0]
    kind = name.split(".")[0] if root in (*_TAPS, "latent") else firing.kind
    stage: Stage = _TAPS.get(root) or (
        "latent" if root == "latent" else "encoder" if firing.finished < posterior else "decoder"
    )
    return Site(name, kind, stage, firing.shape[firing.axis], firing.shape[1:], firing.axis)
