"""Training a network to have a declared circuit: interchange, node-strict and edge-strict losses.

A network's units are put in blocks, one a factor, with some left over. For random base and source images, losses ask

- behaviour: reconstruct, by the mean and by a sample, with a small KL;
- interchange: with a block taken from the source run, show what the world shows if that factor is the source's;
- node-strict: with left-over units taken from the source run, show the same as without;
- edge-strict: with what a random half of the edges outside the circuit carry taken from the source run, the same;
- live: every edge of the circuit carries a share of its target's variance, and its units are on for some images, so that
  what is declared to matter does.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from nnsight_vae.circuits.known import edge_strict_world as world
from nnsight_vae.models.architectures import build
from nnsight_vae.models.networks import MLPVAE

STEPS = 8_000
_BATCH, _RATE = 128, 3e-3
_KL, _NODE, _EDGE, _LIVE = 2e-3, 1.0, 10.0, 1.0
_OFF = 0.2  # how much smaller weights outside the circuit start
_SHARE = 0.5  # of an equal part in its target's sd, what an edge of the circuit must carry
_LATENT_AT = 3  # position of the latent column


class Blocks(NamedTuple):
    """What is declared of the network.

    Attributes:
        units: for each column, from the pixels to the pixels, the factor that each unit is for; -1: none.
        circuit: for each layer, the weights that are the circuit's.
    """

    units: tuple[Int[Tensor, " unit"], ...]
    circuit: tuple[Bool[Tensor, "target source"], ...]


class Run(NamedTuple):
    """A run of the network: what each layer takes (and the output), and what it gives before the activation."""

    taken: list[Float[Tensor, "n unit"]]
    given: list[Float[Tensor, "n unit"]]


def declare(input_units: Int[Tensor, " unit"]) -> Blocks:
    """Blocks of equal size, about a fifth of each hidden column and the last latent left over, and the circuit among them.

    A block reads its own factor's block. Images show f1, a latent its noise u1 = f1 - 0.6 relu(f0): so latent 1 reads the
    encoder's block f0 too, and the decoder's block f1 reads latent 0.
    """
    n_factors = len(world.NAMES)

    def column(size: int) -> Tensor:
        own = torch.arange(n_factors).repeat_interleave(int(0.8 * size / n_factors))
        return torch.cat([own, -torch.ones(size - len(own), dtype=torch.long)])

    hidden = [column(size) for size in (*world.HIDDEN, world.LATENT, *world.HIDDEN[::-1])]
    units = (input_units, *hidden, input_units)
    circuit = []
    for layer, (before, after) in enumerate(itertools.pairwise(units)):
        same = (before == after[:, None]) & (before >= 0)
        if _LATENT_AT in (layer, layer + 1):
            same |= (before == 0) & (after == 1)[:, None]
        circuit.append(same)
    return Blocks(units, tuple(circuit))


class Network:
    """The layers of an `MLPVAE` in order, run from any of them on."""

    def __init__(self, module: MLPVAE) -> None:
        linear = [layer for part in (module.encoder, module.decoder) for layer in part if isinstance(layer, nn.Linear)]
        n = len(world.HIDDEN)
        self.layers = [*linear[:n], module.fc_mu, *linear[n:]]
        self.logvar = module.fc_logvar

    def activate(self, layer: int, given: Float[Tensor, "n unit"]) -> Float[Tensor, "n unit"]:
        """What the next layer takes of what a layer gives."""
        if layer == len(self.layers) - 1:
            return torch.sigmoid(given)
        return given if layer == _LATENT_AT - 1 else torch.relu(given)

    def onward(self, taken: Float[Tensor, "n unit"], layer: int) -> Float[Tensor, "n pixel"]:
        """The output when a layer takes this."""
        for number in range(layer, len(self.layers)):
            taken = self.activate(number, self.layers[number](taken))
        return taken

    def run(self, x: Float[Tensor, "n pixel"]) -> Run:
        """A run on images, in full."""
        taken, given = [x], []
        for number, layer in enumerate(self.layers):
            given.append(layer(taken[-1]))
            taken.append(self.activate(number, given[-1]))
        return Run(taken, given)


def train(seed: int, steps: int = STEPS, progress: Callable[[int], None] | None = None) -> MLPVAE:
    """A network trained from the start; see the module for the losses.

    Args:
        seed: of weights and images.
        steps: of the optimiser.
        progress: called with the number of steps since the last call.
    """
    generator = torch.Generator().manual_seed(seed)
    module = cast(MLPVAE, build("MLPVAE", world.ARGUMENTS, generator))
    network, blocks = (
        Network(module),
        declare(torch.tensor(world.CHANNEL_OF).repeat_interleave(world.IMAGE[1] * world.IMAGE[2])),
    )
    _initialise(network, blocks, generator)
    optimiser = torch.optim.Adam(module.parameters(), lr=_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _RATE, steps)
    for _ in range(steps):
        optimiser.zero_grad()
        _loss(network, blocks, generator).backward()
        optimiser.step()
        schedule.step()
        if progress is not None:
            progress(1)
    return module.eval()


@torch.no_grad()
def _initialise(network: Network, blocks: Blocks, generator: torch.Generator) -> None:
    for layer, circuit in zip(network.layers, blocks.circuit, strict=True):
        weight = torch.randn(layer.weight.shape, generator=generator)
        weight *= (2 / circuit.sum(1, keepdim=True).clamp(min=4)).sqrt()
        layer.weight.copy_(torch.where(circuit, weight, _OFF * weight))
        layer.bias.zero_()
    network.logvar.weight.zero_()
    network.logvar.bias.zero_()


def _loss(network: Network, blocks: Blocks, generator: torch.Generator) -> Tensor:
    noise = torch.randn(2, _BATCH, len(world.NAMES), generator=generator)
    factors = [world.factors_from(u) for u in noise]
    images = [world.render(f).flatten(1) for f in factors]
    base, source = (network.run(x) for x in images)
    logvar = network.logvar(base.taken[_LATENT_AT - 1])
    eps = torch.randn(logvar.shape, generator=generator)
    mu, output = base.taken[_LATENT_AT], base.taken[-1]
    sampled = network.onward(mu + torch.exp(0.5 * logvar) * eps, _LATENT_AT)
    loss = _distance(output, images[0]) + _distance(sampled, images[0])
    loss = loss + _KL * 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(1).mean()
    for column in range(1, len(network.layers)):
        taken, other, units = base.taken[column], source.taken[column], blocks.units[column]
        block = int(torch.randint(len(world.NAMES), (), generator=generator))
        shown = network.onward(torch.where(units == block, other, taken), column)
        loss = loss + _distance(shown, _exchanged(noise, factors, block, latent=column == _LATENT_AT))
        spare = (units < 0) & (torch.rand(len(units), generator=generator) < 0.7)
        loss = loss + _NODE * _distance(network.onward(torch.where(spare, other, taken), column), output)
    for number, (layer, circuit) in enumerate(zip(network.layers, blocks.circuit, strict=True)):
        off = (torch.rand(circuit.shape, generator=generator) < 0.5) & ~circuit
        carried = F.linear(source.taken[number] - base.taken[number], layer.weight * off)
        patched = network.activate(number, base.given[number] + carried)
        loss = loss + _EDGE * _distance(network.onward(patched, number + 1), output)
        loss = loss + _LIVE * _dead(number, network, blocks, base)
    return loss


def _distance(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().sum(1).mean()


def _exchanged(noise: Tensor, factors: list[Tensor], block: int, latent: bool) -> Tensor:
    """What the world shows when one factor is the source's: its noise, where what it causes follows, or its picture alone."""
    mixed = (noise[0] if latent else factors[0]).clone()
    mixed[:, block] = (noise[1] if latent else factors[1])[:, block]
    return world.render(world.factors_from(mixed) if latent else mixed).flatten(1)


def _dead(number: int, network: Network, blocks: Blocks, run: Run) -> Tensor:
    """How far edges of the circuit are from carrying their share, and its units from being on for some of the images."""
    circuit, given = blocks.circuit[number], run.given[number]
    sd = given.std(0)
    part = network.layers[number].weight.abs() * run.taken[number].std(0) / (sd[:, None] + 1e-3)
    parts = circuit.sum(1, keepdim=True).clamp(min=1)
    lacking = (_SHARE - part * parts).clamp(min=0)[circuit].square().mean()
    if number in (_LATENT_AT - 1, len(network.layers) - 1):
        return lacking
    off = ((-given.mean(0) - 0.5 * sd) / (sd.detach() + 0.3)).clamp(min=0)
    return lacking + off[blocks.units[number + 1] >= 0].square().mean()
