"""Layout: the sites of a VAE for one input shape, and the module paths that serve them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from nnsight_vae.errors import AdapterError, DataError, NnsightVaeError
from nnsight_vae.probe import Firing, probe
from nnsight_vae.self_check import SelfCheck
from nnsight_vae.sites import Site, Sites, Stage
from nnsight_vae.wrapped import Wrapped

_TAPS: dict[str, Stage] = {"tap_input": "input", "tap_output": "output"}


@dataclass(frozen=True)
class Layout:
    """What one probe of a VAE found.

    Attributes:
        firings: module path (inside the wrapper) -> what the module did, in order of completion.
        sites: the addressable tensors, in execution order.
        paths: site name -> module path.
        check: the modules that are no sites, and what that means.
    """

    firings: dict[str, Firing]
    sites: Sites
    paths: dict[str, str]
    check: SelfCheck

    @classmethod
    def of(cls, firings: dict[str, Firing], modules: Iterable[str]) -> Layout:
        """The layout of a probe.

        Args:
            firings: what fired, by module path.
            modules: path of every module; those that are no site are remembered with the reason.

        Raises:
            AdapterError: the posterior or the reconstruction is not one tensor with a row per example.
        """
        _require_rows(firings)
        modules = tuple(modules)
        reach = firings["latent.mu"].finished
        found = {f.path: _site(f, reach) for f in firings.values() if _refusal(f) is None}
        refused = {site_name(path): _refusal(firings.get(path)) or "" for path in modules if path not in found}
        sites = Sites(list(found.values()), refused)
        paths = {site.name: path for path, site in found.items()}
        return cls(firings, sites, paths, SelfCheck.of(firings, modules))


def read_layout(root: Wrapped, x: Tensor, known: Iterable[tuple[int, ...]] = ()) -> Layout:
    """Probe a wrapped model on inputs like x.

    Args:
        root: the wrapper module, in eval mode.
        x: inputs `[n, *image]`.
        known: input shapes it is known to run, for the error.

    Raises:
        AdapterError: the adapter does not fit the model.
        DataError: the model cannot run x.
    """
    try:
        firings = probe(root, x)
    except NnsightVaeError:
        raise
    except (TypeError, AttributeError) as error:  # about the call, not about x
        raise AdapterError(
            f"{type(root.adapter).__name__} cannot run this {type(root.model).__name__}: {error}. Say how to encode and decode with "
            "nv.adapt(module, encoder=lambda x: (mu, logvar), decoder=lambda z: reconstruction); a conditional VAE, which takes more than x, "
            "is wrapped with given=, and where one half takes no condition, with nv.adapt(module, encoder=lambda x, y: module.encode(x), "
            "decoder=module.decode, given=y)."
        ) from error
    except Exception as error:
        shapes = ", ".join(str(("n", *shape)) for shape in known)
        runs = f" It runs inputs of shape {shapes}." if shapes else ""
        raise DataError(f"this VAE cannot run x of shape {tuple(x.shape)}: {error}.{runs}") from error
    return Layout.of(firings, (name for name, _ in root.named_modules() if name))


def site_name(path: str) -> str:
    """The site a module path serves: the user's own path, prefixed `model.` where that would collide with our names."""
    if path in _TAPS:
        return _TAPS[path]
    name = path.removeprefix("model.")
    plain = name
    while plain.startswith("model."):  # a user's own `model.input` must not become what a user's `input` became
        plain = plain.removeprefix("model.")
    taken = plain in _TAPS.values() or plain.split(".")[0] == "latent"
    return path if taken else name


def _refusal(firing: Firing | None) -> str | None:
    """Why a module is no site; None where it is one."""
    if firing is None:
        return "that module does not run when this VAE encodes and decodes"
    if firing.calls != 1:
        return f"it fires {firing.calls} times per forward, so its name does not say which value is meant"
    if firing.shape is None:
        return f"it returns {firing.returned}, not one float tensor [n, units, ...] with a row per example"
    return None


def _require_rows(firings: dict[str, Firing]) -> None:
    for path, what in (("latent.mu", "mu"), ("latent.logvar", "logvar"), ("tap_output", "the reconstruction")):
        if firings[path].shape is None:
            raise AdapterError(
                f"{what} is {firings[path].returned}; expected a float tensor [n, ...] with one row per example."
            )
    shapes = [firings[path].shape for path in ("latent.mu", "latent.logvar")]
    if shapes[0] != shapes[1]:
        raise AdapterError(f"mu and logvar have shapes {shapes[0]} and {shapes[1]}, expected one shape.")


def _site(firing: Firing, posterior: int) -> Site:
    name, root = site_name(firing.path), firing.path.split(".")[0]
    kind = name.split(".")[0] if root in (*_TAPS, "latent") else firing.kind
    stage: Stage = _TAPS.get(root) or (
        "latent" if root == "latent" else "encoder" if firing.finished < posterior else "decoder"
    )
    shape = firing.shape or ()
    return Site(name, kind, stage, shape[firing.axis], shape[1:], firing.axis)
