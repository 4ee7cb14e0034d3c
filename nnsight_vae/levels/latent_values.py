"""What latents are set to: posterior or prior quantiles, numbers, codes, or any interventions, one move after the other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nnsight_vae.diagnosis import refuse_not_finite
from nnsight_vae.donors import selected
from nnsight_vae.engine import activations, example_chunks
from nnsight_vae.errors import InterventionError
from nnsight_vae.interventions import Intervention, Quantize, Set
from nnsight_vae.levels.codes import drawn_codes, require_codes
from nnsight_vae.runs import repeat
from nnsight_vae.sites import Selection
from nnsight_vae.vae import VAE

Values = Literal["posterior", "prior", "codes"] | float | Intervention | Sequence[float | Intervention]

DRAWS = 100  # fewest draws of each latent that its quantiles are taken over
RANGE = (0.05, 0.95)  # quantiles between which a latent is moved by default


@dataclass(frozen=True)
class Moves:
    """What each experiment is set to.

    Attributes:
        names: one a move: `"q0.05"`, `"0.5"`, `"code 3"`, `"swap"`.
        joints: for each move, for each experiment, the interventions that are made together.
        weights: probability of each move, where the moves are draws from a distribution.
    """

    names: tuple[str, ...]
    joints: tuple[tuple[dict[Selection, Intervention], ...], ...]
    weights: tuple[float, ...] | None = None

    @property
    def plan(self) -> list[dict[Selection, Intervention]]:
        """All of them, move by move."""
        return [joint for move in self.joints for joint in move]

    def record(self, what: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Name of each move -> name of each experiment -> what it is set to, as JSON data."""
        experiments = list(what)
        return {
            name: dict(zip(experiments, map(_shown, move), strict=True))
            for name, move in zip(self.names, self.joints, strict=True)
        }


def moves(
    vae: VAE,
    x: Float[Tensor, "n *image"],
    values: Values,
    what: Mapping[str, tuple[Selection, ...]],
    quantiles: Sequence[float] = RANGE,
) -> Moves:
    """The interventions that `values` stands for in each experiment.

    Args:
        vae: the model.
        x: inputs that stand for the data.
        values: see `nnsight_vae.perturb_latents`.
        what: name of each experiment -> what it acts on, all of it at `latent.z`.
        quantiles: of `"posterior"` and `"prior"`.

    Raises:
        InterventionError: the values cannot be read, are repeated, or do not fit what they are for.
    """
    others = [name for name, joint in what.items() if any(selection.site != "latent.z" for selection in joint)]
    if others:
        raise InterventionError(
            f"perturbing latents acts on latent.z, got {others[0]}; nv.patch_activations takes every other site."
        )
    if isinstance(values, str):
        if values in ("posterior", "prior"):
            return _quantile_moves(vae, x, values, what, quantiles)
        if values != "codes":
            raise InterventionError(
                f"values={values!r} is not known; expected 'posterior', 'prior', 'codes', numbers in latent units, or "
                "interventions such as nv.Swap(others) and nv.Quantize(3)."
            )
        codes, weights = drawn_codes(vae, x)
        listed: list[Intervention] = [Quantize(code) for code in codes]
    else:
        listed, weights = _listed(values), None
    if any(isinstance(intervention, Quantize) for intervention in listed):
        require_codes(vae, what, listed)
    joints = tuple(tuple(dict.fromkeys(joint, each) for joint in what.values()) for each in listed)
    return Moves(_names(listed), joints, weights)


def posterior_quantiles(
    vae: VAE, x: Float[Tensor, "n *image"], quantiles: Sequence[float] = RANGE, seed: int = 0
) -> Float[Tensor, "quantile latent"]:
    """Quantiles of each latent's aggregate posterior q(z_k) = mean over x of q(z_k | x).

    One draw from q(z|x) an example (more where examples are fewer than 100): a collapsed latent then gets the prior's spread,
    not the point its means collapse to, and clamping it to these values stays where the decoder has been trained.

    Args:
        vae: the model.
        x: inputs `[n, *image]` that stand for the data.
        quantiles: in [0, 1].
        seed: of the draws.

    Returns: `[quantile, latent]`; for a spatial latent `[quantile, channel]`, over examples and positions.
    """
    z = posterior_draws(vae, x, DRAWS, seed)
    return torch.from_numpy(_quantiles(z, quantiles)).to(z)


def posterior_draws(
    vae: VAE, x: Float[Tensor, "n *image"], at_least: int, seed: int = 0
) -> Float[Tensor, "draw *latent"]:
    """Draws from the aggregate posterior: equally many from q(z|x) of each example, `at_least` in all.

    Raises:
        DataError: a posterior is NaN or infinite; names the first unit of the model that is.
    """
    acts = activations(vae, x, ["latent.mu", "latent.logvar"])
    mu, logvar = acts["latent.mu"], acts["latent.logvar"]
    if not bool(torch.isfinite(mu).all() and torch.isfinite(logvar).all()):
        refuse_not_finite(vae, x, None, example_chunks(vae, x))
    draws = math.ceil(at_least / len(mu))
    generator = torch.Generator().manual_seed(
        seed
    )  # numbers follow from the seed alone, whatever torch's default dtype is
    eps = torch.randn(draws * len(mu), *mu.shape[1:], generator=generator, dtype=torch.float32).to(mu)
    if vae.adapter.levels > 1:  # lower levels are inferred from draws of the higher ones
        return activations(vae, repeat(x, draws), ["latent.z"], eps=eps)["latent.z"]
    return vae.law(repeat(mu, draws), repeat(logvar, draws)).rsample(eps)


def _quantile_moves(
    vae: VAE, x: Tensor, values: str, what: Mapping[str, tuple[Selection, ...]], quantiles: Sequence[float]
) -> Moves:
    try:
        levels = np.asarray(quantiles, dtype=float)
    except (TypeError, ValueError):
        levels = np.empty(0)
    closed = values == "posterior"  # the prior's own quantiles at 0 and 1 are infinite
    inside = (levels >= 0) & (levels <= 1) if closed else (levels > 0) & (levels < 1)
    if levels.ndim != 1 or not len(levels) or not inside.all():
        raise InterventionError(
            f"quantiles must be a list of numbers between 0 and 1, e.g. (0.05, 0.95); got {quantiles!r}."
        )
    if len(set(levels.tolist())) < len(levels):
        raise InterventionError(f"quantiles repeat a number: {quantiles!r}.")
    if closed:
        z = posterior_draws(vae, x, DRAWS)
        table = {
            selection: _quantiles(selected(z, selection), levels) for joint in what.values() for selection in joint
        }
    else:
        prior = np.array([[NormalDist().inv_cdf(level)] for level in levels.tolist()])
        table = {s: prior.repeat(len(vae.sites.units(s)), axis=1) for joint in what.values() for s in joint}
    joints = tuple(
        tuple({s: _set(vae, s, table[s][row]) for s in joint} for joint in what.values()) for row in range(len(levels))
    )
    return Moves(tuple(f"q{_number(level)}" for level in levels.tolist()), joints)


def _quantiles(z: Tensor, quantiles: Sequence[float] | np.ndarray) -> Float[np.ndarray, "quantile unit"]:
    """Over draws and positions. In numpy: torch.quantile refuses half precision and more than 16 million values."""
    return np.quantile(z.transpose(0, 1).flatten(1).double().cpu().numpy(), quantiles, axis=1)


def _set(vae: VAE, selection: Selection, values: Float[np.ndarray, " unit"]) -> Intervention:
    """Each unit to its own value, over all the positions that are named."""
    if len(values) == 1:
        return Set(float(values[0]))
    positions = 0 if selection.position else len(vae.sites[selection.site].grid)
    return Set(torch.from_numpy(values).view(1, -1, *([1] * positions)))


def _listed(values: Any) -> list[Intervention]:
    """The interventions in a list of numbers and interventions, or in one of them."""
    single = isinstance(values, Intervention | int | float | np.number)
    listed: list[Intervention] = []
    try:
        for value in [values] if single else list(values):
            listed.append(value if isinstance(value, Intervention) else Set(float(value) + 0.0))
    except (TypeError, ValueError):
        listed = []
    if not listed:
        raise InterventionError(
            f"values must be finite numbers in latent units, the same for every latent, or interventions; got {values!r}."
        )
    repeated = next((value for i, value in enumerate(listed) if value in listed[:i]), None)
    if repeated is not None:
        raise InterventionError(f"values repeats {repeated!r}; name each once.")
    return listed


def _names(listed: Sequence[Intervention]) -> tuple[str, ...]:
    """A name a move; interventions that hold tensors may share one, and are then counted."""
    names: list[str] = []
    for intervention in listed:
        name = _name(intervention)
        taken = sum(other == name or other.startswith(f"{name} (") for other in names)
        names.append(f"{name} ({taken + 1})" if taken else name)
    return tuple(names)


def _name(intervention: Intervention) -> str:
    match intervention:
        case Quantize(code):
            return f"code {code}"
        case Set(value) if not isinstance(value, Tensor):
            return _number(value)
    held = any(isinstance(value, Tensor) for value in vars(intervention).values())
    return type(intervention).__name__.lower() if held else repr(intervention)


def _number(value: float) -> str:
    """As short as it can be told from every other number."""
    short = f"{value:g}"
    return short if float(short) == value else repr(float(value))


def _shown(joint: Mapping[Selection, Intervention]) -> Any:
    """What an experiment is set to, as JSON data: numbers where they are few, else the intervention as it prints."""
    shown: list[Any] = []
    for each in joint.values():
        if not isinstance(each, Set):
            shown.append(repr(each))
        else:
            shown.append(each.value.flatten().tolist() if isinstance(each.value, Tensor) else each.value)
    return shown[0] if len(shown) == 1 else shown
