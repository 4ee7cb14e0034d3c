"""Pairs and recorded runs of the VAEs whose layers form no chain: shared by the tests of wirings."""

from __future__ import annotations

import torch
from branching_vaes import branching_vaes
from torch import Tensor, nn
from vaes import ResidualVAE, images, seeded

import nnsight_vae as nv
from nnsight_vae.circuits.wiring.contributions import port_axis
from nnsight_vae.circuits.wiring.cuts import Cut
from nnsight_vae.circuits.wiring.pair_run import PairRun, pair_runs
from nnsight_vae.circuits.wiring.wiring import Wiring
from nnsight_vae.pairs import Pairs
from nnsight_vae.readouts import Pixels

MODELS = {"Residual": seeded(ResidualVAE(), 1), **branching_vaes()}
SMOOTH = ("GroupNorm", "Attention", "LayerNorm")


def pairs_for(model: nn.Module, n: int = 5, sampled: bool = False) -> tuple[nv.VAE, Pairs]:
    model.double()
    base, source = images(model, n).double(), images(model, n, seed=1).double()
    vae = nv.VAE(model, example=base)
    shape = vae.sites["latent.mu"].shape
    eps = torch.randn(n, *shape, generator=torch.Generator().manual_seed(2)).double() if sampled else None
    return vae, Pairs(base, source, factor="f", eps=eps)


def readout_of(vae: nv.VAE) -> Pixels:
    pixels = Pixels(vae.sites["output"].shape)
    return pixels[[pixels.names[3], pixels.names[-2]]]


def the_run(vae: nv.VAE, pairs: Pairs) -> tuple[Wiring, PairRun]:
    wiring = Wiring.of(vae, pairs.base, pairs.eps)
    ((_, run),) = pair_runs(vae, pairs, wiring)
    return wiring, run


def position(wiring: Wiring, path: str) -> int:
    return next(i for i, column in enumerate(wiring.columns) if column.path.removeprefix("model.") == path)


def masked(part, run: PairRun, reader: int) -> Tensor:
    """A part's change at the ports that are its own."""
    columns = run.wiring.columns
    axis = port_axis(columns[reader].layer if reader < len(columns) else None, part.delta)
    shape = [-1 if a == axis else 1 for a in range(part.delta.ndim)]
    return part.delta * (part.owners >= 0).view(shape)


class Hooked:
    """What one module takes in as a function of what others give, on the model itself, with plain hooks."""

    def __init__(self, model: nn.Module, parents: list[str], reader: str, x: Tensor) -> None:
        self.model, self.parents, self.reader, self.x = model, parents, reader, x

    def __call__(self, outputs: list[Tensor] | None) -> tuple[list[Tensor], Tensor]:
        modules, kept, taken = dict(self.model.named_modules()), {}, []
        hooks = [modules[self.reader].register_forward_pre_hook(lambda m, args: taken.append(args[0].clone()))]
        for i, parent in enumerate(self.parents):

            def give(module, args, out, i=i):
                kept[i] = out.clone() if outputs is None else outputs[i].clone()
                return kept[i].clone()

            hooks.append(modules[parent].register_forward_hook(give))
        try:
            with torch.no_grad():
                self.model.decode(self.model.encode(self.x)[0])
        finally:
            for hook in hooks:
                hook.remove()
        return [kept[i] for i in range(len(self.parents))], taken[0]


def kept_everywhere(cuts: tuple[Cut, ...], value: bool) -> list[Tensor]:
    return [torch.full((len(cut),), value) for cut in cuts]
