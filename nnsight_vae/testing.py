"""What an adapter must hold, as one call for whoever writes one: `check_adapter(vae, x)`."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nnsight_vae.attribution import DecoderIntegratedGradients, LatentIntegratedGradients
from nnsight_vae.circuits.scoring.scores import score_edges
from nnsight_vae.engine import intervene
from nnsight_vae.errors import AdapterError, CircuitError, DataError, NnsightVaeError, NnsightVaeWarning, ReadoutError
from nnsight_vae.interventions import Set
from nnsight_vae.levels.latents import perturb_latents
from nnsight_vae.levels.patching import patch_activations
from nnsight_vae.pairs import Pairs
from nnsight_vae.probe import random_state_kept
from nnsight_vae.self_check import SelfCheck
from nnsight_vae.vae import VAE

_OURS = re.compile(r"input|output|latent\.(mu|logvar|eps|z)\d*")
_ROUNDING = 1e-4  # relative: of runs that do the same arithmetic in batches of other sizes
_BESIDE = "something reaches the decoder beside the latent (a skip connection, a value kept by encode)"
_SCORED = 1_000_000  # parameters of the largest model whose edges are scored
_STEPS = 8  # of integrated gradients: enough to see whether gradients arrive


@dataclass(frozen=True)
class Conformance:
    """What `check_adapter` found; print it.

    Attributes:
        model: the module's class.
        adapter: the adapter's class.
        reference: which of the model's own paths the reconstruction was held against.
        difference: largest difference from it, in output units.
        sites: how many sites the model has, our own included.
        unreached: the modules that are no sites, and what that means.
        circuit: `"scored, N edges"`, or why circuits are refused or were not tried.
    """

    model: str
    adapter: str
    reference: str
    difference: float
    sites: int
    unreached: SelfCheck
    circuit: str

    def __str__(self) -> str:
        unreached = f"\n{self.unreached}" if self.unreached else ""
        return (
            f"{self.adapter} reads {self.model}: reconstruction {self.difference:.3g} from the model's {self.reference}; "
            f"{self.sites} sites; sampling, traces, patches, latent sweep and attribution as they must be; circuit {self.circuit}; "
            f"model untouched.{unreached}"
        )


def check_adapter(vae: VAE, x: Float[Tensor, "n *image"]) -> Conformance:
    """Hold a wrapped model against everything an adapter must give. Run it in the tests of your adapter.

    Checked, in this order: the reconstruction is the model's own; sites carry the model's module names, in encoder and decoder;
    the same noise gives the same sample, and no noise the mean; a trace serves what a plain call gives, and a write at the latent
    is decoded; patching the whole latent between two inputs is all of their difference (nothing passes beside it), and patches in
    encoder and decoder run; a latent sweep and both directions of integrated gradients give finite numbers and gradients that
    arrive; edges can be scored, or circuits say by name why not (models of over a million parameters are not tried); and the model is left as it was, after an exception too.

    Args:
        vae: the model, wrapped with the adapter in question.
        x: at least 4 different inputs `[n, *image]`, of which the first 8 are used.

    Returns: `Conformance`.

    Raises:
        AdapterError: says which of these failed, with numbers, and what is usually wrong then.
        DataError: fewer than 4 inputs, or inputs the model cannot run.

    Example:
        >>> from nnsight_vae.models import MLPVAE
        >>> vae = VAE(MLPVAE(image_shape=(1, 8, 8), latent=3))
        >>> found = check_adapter(vae, torch.rand(4, 1, 8, 8))
        >>> found.adapter, found.difference
        ('EncodeDecode', 0.0)
    """
    x = vae.checked(x)[:8]
    if len(x) < 4 or torch.equal(x[0], x[1]):
        raise DataError(f"check_adapter needs at least 4 inputs that differ, got {len(x)}.")
    # What effects of few inputs and few steps warn of is not what is asked here.
    with _untouched(vae, x), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", NnsightVaeWarning)
        difference = vae.verify(x)
        _check_sites(vae)
        _check_sampling(vae, x)
        _check_traces(vae, x)
        _check_patching(vae, x)
        moved = _check_sweep(vae, x)
        _check_gradients(vae, x, moved)
        circuit = _circuit(vae, x)
        with vae.held(), random_state_kept(x.device):
            reference = vae.adapter.reference(vae.module, x, *vae._module.conditions((), len(x)))[1]
    return Conformance(
        type(vae.module).__name__,
        type(vae.adapter).__name__,
        reference,
        difference,
        len(vae.sites),
        vae.self_check,
        circuit,
    )


class _Moments:
    """Mean and mean square of a reconstruction: a readout of any kind of data."""

    names = ("mean", "mean square")

    def __call__(self, reconstruction: Tensor) -> Tensor:
        flat = reconstruction.flatten(1)
        return torch.stack([flat.mean(1), flat.square().mean(1)], 1)


def _check_sites(vae: VAE) -> None:
    own = dict(vae.module.named_modules())
    if strange := [name for name in vae.sites if not _OURS.fullmatch(name) and name.removeprefix("model.") not in own]:
        _fail("sites", f"{', '.join(strange)} are no modules of {type(vae.module).__name__}.")
    for stage in ("encoder", "decoder"):
        if not any(site.stage == stage for site in vae.sites.values()):
            _fail(
                "sites",
                f"no module of the {stage} is a site: {stage[:-1].rstrip('e')}ing runs functions, or modules that are not part of the "
                "wrapped one.",
            )


def _check_sampling(vae: VAE, x: Tensor) -> None:
    shape = vae.sites["latent.mu"].shape
    eps = torch.randn(len(x), *shape, generator=torch.Generator().manual_seed(0)).to(x)
    sampled = vae(x, eps=eps)
    _require_near("sampling", vae(x, eps=eps), sampled, "the same noise gave another sample: the adapter draws its own")
    _require_near("sampling", vae(x, eps=torch.zeros_like(eps)), vae(x), "no noise gave another value than the mean")
    drawn = vae.encode(x, eps=eps).rsample(eps)
    _require_near("sampling", vae.decode(drawn), sampled, "decode(rsample) is not the sampled run")
    plain, posterior = vae(x), vae.encode(x)
    _require_near("sampling", vae.decode(posterior.mu), plain, "decode(encode(x).mu) is not the reconstruction of x")
    vae.encode(x.roll(1, 0))
    _require_near("decoding", vae.decode(posterior.mu), plain, f"decode depends on what was encoded last; {_BESIDE}")


def _check_traces(vae: VAE, x: Tensor) -> None:
    with vae.trace(x):
        z = vae.latent.z.output.clone().save()
        output = vae.output.save()
    _require_near("trace", output, vae(x), "a traced run differs from a plain one")
    _require_near("trace", z, vae.encode(x).mu, "latent.z of a run without noise is not the posterior mean")
    moved = z.clone()
    moved[:, 0] = 1.0
    patched = intervene(vae, x, {"latent.z[0]": Set(1.0)})
    _require_near(
        "trace", patched.reconstruction, vae.decode(moved), "a latent set in a run is not what decode makes of it"
    )


def _check_patching(vae: VAE, x: Tensor) -> None:
    pairs, readout = Pairs(x, x.roll(1, 0)), _Moments()
    base = readout(vae(pairs.base))
    change = readout(vae(pairs.source)) - base
    whole = patch_activations(vae, pairs, ["latent.z"], readout=readout, per="site", progress=False)
    for part in whole.parts.values():
        _require_near(
            "patching",
            torch.from_numpy(part.values[0].T).to(change),
            change,
            f"patching the whole latent does not carry the difference of two inputs; {_BESIDE}",
            scale=float(base.abs().max()),
        )
    ends = [[site.name for site in vae.sites.values() if site.stage == stage] for stage in ("encoder", "decoder")]
    found = patch_activations(
        vae, pairs, [ends[0][0], ends[1][0]], readout=readout, per="site", direction="noising", progress=False
    )
    _require_finite("patching", torch.from_numpy(found.values))


def _check_sweep(vae: VAE, x: Tensor) -> bool:
    """Whether a sweep runs; returns whether it moved anything."""
    found = torch.from_numpy(perturb_latents(vae, x, readout=_Moments(), progress=False).values)
    _require_finite("latent sweep", found)
    return bool(found.abs().max() > 0)


def _check_gradients(vae: VAE, x: Tensor, moved: bool) -> None:
    with torch.enable_grad():
        z = vae.encode(x).mu.detach()
        _require_finite(
            "attribution", DecoderIntegratedGradients(vae, _Moments()).attribute(z, target=None, n_steps=_STEPS)
        )
        _require_finite("attribution", LatentIntegratedGradients(vae).attribute(x, target=None, n_steps=_STEPS))
        if moved and not _arrives(_Moments()(vae.decode(z.requires_grad_())), z):
            _fail(
                "attribution", "no gradient reaches the latent from the reconstruction: decode rounds or detaches it."
            )
        given = x.detach().clone().requires_grad_()
        mu = vae.encode(given).mu
        if vae.adapter.codebook is None and bool((mu - mu[:1]).abs().max() > 0) and not _arrives(mu, given):
            _fail("attribution", "no gradient reaches the input from the posterior mean: encode rounds or detaches it.")


def _arrives(value: Tensor, source: Tensor) -> bool:
    if not value.requires_grad:
        return False
    (gradient,) = torch.autograd.grad(value.sum(), source, allow_unused=True)
    return gradient is not None and bool(gradient.abs().max() > 0)


def _circuit(vae: VAE, x: Tensor) -> str:
    """That edges are scored, or why not."""
    if (size := sum(p.numel() for p in vae.module.parameters())) > _SCORED:
        return f"not tried on {size:,} parameters (at most {_SCORED:,} here: it would take minutes)"
    try:
        with torch.enable_grad():
            scores = score_edges(vae, Pairs(x[:2], x[2:4], factor="input"), _Moments(), method="eap")
    except (CircuitError, ReadoutError) as refusal:
        return f"refused: {refusal}"
    _require_finite("circuit", torch.from_numpy(scores.values))
    return f"scored, {len(scores)} edges"


@contextmanager
def _untouched(vae: VAE, x: Tensor) -> Iterator[None]:
    """Refuse whatever the block, or an exception in a trace, leaves changed in the model or in the global random state."""
    before = _state(vae)
    yield
    with random_state_kept(x.device):
        try:
            with vae.trace(x):
                vae.latent.z.output[:] = vae.latent.z.output[:, :, None, None, None]  # cannot be
        except Exception as error:
            if isinstance(error, NnsightVaeError):
                raise
    for name, value in _state(vae).items():
        if value != before[name]:
            _fail(
                "model untouched",
                f"the model's {name} changed while it was analysed; encode, decode and reference must not.",
            )


def _state(vae: VAE) -> dict[str, object]:
    modules = list(vae.module.modules())
    return {
        "weights or buffers": vae.fingerprint,
        "training flags": [m.training for m in modules],
        "requires_grad": [p.requires_grad for p in vae.module.parameters()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in modules],
        "use of the global random state": torch.get_rng_state().tolist(),
    }


def _require_near(check: str, got: Tensor, expected: Tensor, wrong: str, scale: float | None = None) -> None:
    if got.shape != expected.shape:
        _fail(check, f"{wrong}: shapes {tuple(got.shape)} and {tuple(expected.shape)}.")
    scale = float(expected.abs().max()) if scale is None else scale
    difference = float((got - expected).abs().max())
    if not difference <= _ROUNDING * max(scale, 1e-6):
        _fail(check, f"{wrong}: they differ by {difference:.3g}, of values up to {scale:.3g}.")


def _require_finite(check: str, values: Tensor) -> None:
    if not bool(torch.isfinite(values).all()):
        _fail(check, f"{int((~torch.isfinite(values)).sum())} of {values.numel()} numbers are NaN or infinite.")


def _fail(check: str, what: str) -> None:
    raise AdapterError(f"check_adapter, {check}: {what}")
