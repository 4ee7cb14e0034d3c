"""Effects between units and factors: do(factor) in the data read at units, do(unit) read at the decoded factors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nnsight_vae.engine import activations, run_interventions
from nnsight_vae.errors import DataError, InterventionError
from nnsight_vae.interventions import Add, Intervention
from nnsight_vae.levels.answers import Block, unit_blocks
from nnsight_vae.levels.inputs import manipulate_inputs
from nnsight_vae.pairs import Pairs
from nnsight_vae.progress import progress_bar
from nnsight_vae.readouts import Readout
from nnsight_vae.sites import Key, Selection
from nnsight_vae.vae import VAE

Advance = Callable[[int], None] | None


class UnitEffects(NamedTuple):
    """Effects between units and factors.

    Attributes:
        units: their names.
        factors: their names.
        values: signed effects.
        random: second moments E e_f e_g of the effects of random directions that are as long; None where not measured.
    """

    units: tuple[str, ...]
    factors: tuple[str, ...]
    values: Float[np.ndarray, "unit factor example"]
    random: Float[np.ndarray, "unit factor factor"] | None = None


def answers_of_units(
    vae: VAE, pairs: dict[str, Pairs], sites: Sequence[Key] | None, reference: Tensor, progress: bool | None = None
) -> UnitEffects:
    """Encoder side: by how much each unit changes under do(factor) alone, in sd of the unit over the reference.

    A unit with positions is read as its mean over them; one position is a unit of its own, `"encoder.4[7]@2,3"`.

    Raises:
        DataError: factors with different numbers of pairs.
    """
    lengths = {factor: len(each) for factor, each in pairs.items()}
    if len(set(lengths.values())) != 1:
        raise DataError(f"units are compared over as many pairs in every factor; got {lengths}.")
    each = [manipulate_inputs(vae, one, sites, reference=reference, progress=progress) for one in pairs.values()]
    return UnitEffects(each[0].units, tuple(pairs), np.concatenate([one.values for one in each], axis=1))


def effects_of_units(
    vae: VAE,
    x: Float[Tensor, "n *image"],
    sites: Sequence[Key],
    readout: Readout,
    *,
    n_random: int,
    seed: int,
    progress: bool | None = None,
) -> UnitEffects:
    """Decoder side: what moving a unit from one of its sd below to one above its value does to what is read.

        effect_u = Y(do(a_u = a_u + s_u)) - Y(do(a_u = a_u - s_u)),      s_u^2 = mean over positions of Var_x a_u

    A unit with positions is moved at all of them alike. Random directions of its layer, over all units and uniform on the sphere, are
    moved in the same way by the root mean square of the layer's s; what they do is scaled to s_u, which is exact where the effect
    is in proportion to the step.

    Args:
        vae: the model.
        x: inputs.
        sites: which units.
        readout: what is read.
        n_random: directions of each layer.
        seed: of their drawing.
        progress: show a bar.

    Raises:
        InterventionError: a code is to be moved by its spread, from which the quantiser would snap it back.
    """
    names, blocks = unit_blocks(vae, sites)
    if vae.adapter.codebook is not None and any(block.site == "latent.z" for block in blocks):
        raise InterventionError(
            "latent.z holds codes, which have no spread to be moved by; nv.causal.map_factors judges positions by swapping codes."
        )
    n_runs = 2 * (len(names) + n_random * len(blocks))
    with progress_bar("moving units", n_runs * len(x), progress) as advance:
        parts = [_of_block(vae, x, block, readout, n_random, seed, advance) for block in blocks]
    values, random = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    return UnitEffects(names, tuple(readout.names), values, random)


def _of_block(
    vae: VAE, x: Tensor, block: Block, readout: Readout, n_random: int, seed: int, advance: Advance
) -> tuple[Float[np.ndarray, "unit factor example"], Float[np.ndarray, "unit factor factor"]]:
    spread = _spread(vae, x, block)
    length = spread.square().mean().sqrt()
    single = [(Selection(block.site, (i,), block.position), spread[i : i + 1]) for i in block.indices]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(n_random, len(spread), generator=generator, dtype=torch.double).to(spread)
    steps = length * drawn / drawn.norm(dim=1, keepdim=True)
    grid = () if block.position is not None else vae.sites[block.site].grid
    anywhere = [(Selection(block.site, None, block.position), step) for step in steps]
    values = _moved(vae, x, [*single, *anywhere], len(grid), readout, advance)
    effects, of_random = values[: len(single)], values[len(single) :]
    moments = np.einsum("dfn,dgn->fg", of_random, of_random) / (n_random * len(x))
    share = (spread[block.indices] / length.clamp(min=torch.finfo(length.dtype).tiny)).square().double().cpu().numpy()
    return effects, share[:, None, None] * moments


def _spread(vae: VAE, x: Tensor, block: Block) -> Float[Tensor, " unit"]:
    activation = activations(vae, x, [block.site])[block.site].movedim(vae.sites[block.site].axis, 1)
    if block.position is not None:
        there: tuple[slice | int, ...] = (slice(None), slice(None), *block.position)
        activation = activation[there]
    return activation.unsqueeze(-1).flatten(2).var(0, correction=0).mean(-1).sqrt()


def _moved(
    vae: VAE, x: Tensor, steps: list[tuple[Selection, Tensor]], n_axes: int, readout: Readout, advance: Advance
) -> Float[np.ndarray, "step factor example"]:
    """Y with each step added minus Y with it taken away."""
    plan: list[dict[Selection, Intervention]] = [
        {selection: Add((sign * step).view(1, -1, *[1] * n_axes))} for sign in (1, -1) for selection, step in steps
    ]
    up, down = run_interventions(vae, x, plan, readout, progress=advance).split(len(steps))
    return (up - down).double().cpu().numpy().transpose(0, 2, 1)
