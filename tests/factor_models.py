"""Worlds of random causal models, and VAEs wired by hand whose latents are their factors: the right answers are known.

    world = factor_world(seed=0)             # a dataset with `scm`, `graph`, `counterfactual`, `pairs`, closed-form `readout()`
    vae = nv.VAE(factor_vae(world))          # exact: decode(encode(x)) = x; `factor_vae(world).latents` is {factor: latent}
    worse = nv.VAE(rotated(factor_vae(world), seed=0)), nv.VAE(untrained(world, seed=0))

An image has one row a factor, and in it a bar as long as the factor's value. `linear=False` bends every edge: tanh(2x) for x.
`spare=1` adds latents that nothing reads and that know nothing. Every factor has standard deviation 1 (within 1 %).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from nnsight_vae.causal import SCM, Mechanism
from nnsight_vae.datasets.procedural import Procedural
from nnsight_vae.datasets.rendering import Renderer
from nnsight_vae.readouts import Readout, select

WIDTH = 8  # pixels of a row
LIMIT = 6.0  # a bar of no length stands for -LIMIT, a full one for LIMIT
NAMES = ("apple", "brick", "cloud", "drum", "eagle", "flute")


class Bars:
    """The factors that the rows show, in their own units, which are standard deviations."""

    reads = "output"

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def __call__(self, reconstruction: Tensor) -> Tensor:
        return 2 * LIMIT * reconstruction[:, 0].mean(-1) - LIMIT

    def __getitem__(self, names: str | Sequence[str]) -> Readout:
        return select(self, names)


class FactorWorld(Procedural):
    """A random SCM, drawn as bars."""

    weights: np.ndarray  # [cause, effect]: x_j = sum_i weights_ij f(x_i) + noise_scale_j N(0, 1), f(x) = x or tanh(2x)
    noise_scales: np.ndarray

    def total_effects(self) -> np.ndarray:
        """[cause, effect] of a linear world: what one unit more of the cause adds to the effect, 1 on the diagonal."""
        return np.linalg.inv(np.eye(len(self.factors)) - self.weights)

    def readout(self, names: str | Sequence[str] | None = None, progress: object = None) -> Readout:
        return Bars(self.factors) if names is None else Bars(self.factors)[names]


def factor_world(seed: int = 0, n_factors: int = 5, linear: bool = True) -> FactorWorld:
    """Half of all pairs are edges, every edge and every total effect counts, and every factor has noise of its own."""
    names = NAMES[:n_factors]
    bend = (lambda x: x) if linear else lambda x: np.tanh(2 * x)
    weights, noise_scales = _random_weights(np.random.default_rng(seed), n_factors, bend)
    scm = SCM(
        {
            name: Mechanism(
                tuple(cause for i, cause in enumerate(names) if weights[i, j]),
                _mechanism({cause: weights[i, j] for i, cause in enumerate(names)}, noise_scales[j], bend),
                lambda rng, n: rng.standard_normal(n),
            )
            for j, name in enumerate(names)
        }
    )
    renderer = Renderer(dict.fromkeys(names, (-LIMIT, LIMIT)), (1, n_factors, WIDTH), _draw)
    world = FactorWorld.drawn(f"bars {seed}", scm, renderer)
    world.weights, world.noise_scales = weights, noise_scales
    return world


def _random_weights(rng: np.random.Generator, k: int, bend: Callable) -> tuple[np.ndarray, np.ndarray]:
    while True:
        order = rng.permutation(k)
        edges = np.triu(rng.random((k, k)) < 0.5, 1)
        raw = edges * rng.uniform(0.5, 1.2, (k, k)) * rng.choice([-1, 1], (k, k))
        x, scales = rng.standard_normal((20_000, k)), np.ones(k)
        for j in range(k):  # causes come first here; columns are shuffled below
            x[:, j] += bend(x[:, :j]) @ raw[:j, j]
            scales[j] = x[:, j].std()
            x[:, j] /= scales[j]
        weights = raw / scales
        total = np.linalg.inv(np.eye(k) - weights)
        reached = np.linalg.matrix_power(np.eye(k) + edges, k) > 0
        if edges.sum() >= k - 1 and np.abs(weights[edges]).min() > 0.25 and np.abs(total[reached]).min() > 0.2:
            back = np.argsort(order)
            return weights[np.ix_(back, back)], (1 / scales)[back]


def _mechanism(weights: dict[str, float], noise_scale: float, bend: Callable) -> Callable:
    return lambda parents, noise: noise_scale * noise + sum(weights[p] * bend(x) for p, x in parents.items())


def _draw(factors: np.ndarray) -> np.ndarray:
    length = WIDTH * (factors[:, :, None] + LIMIT) / (2 * LIMIT)
    return np.rint(255 * np.clip(length - np.arange(WIDTH), 0, 1))[:, None].astype(np.uint8)


class FactorVAE(nn.Module):
    """Half bars -> latents -> thermometers of ReLUs -> bars. Every unit of every layer belongs to one factor."""

    def __init__(self, factors: Sequence[str], latents: dict[str, int], n_latents: int, logvar: float = -6.0) -> None:
        super().__init__()
        k = len(factors)
        self.latents, self.logvar = latents, logvar
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(k * WIDTH, 2 * k), nn.ReLU())
        self.mu = nn.Linear(2 * k, n_latents)
        self.decoder = nn.Sequential(
            nn.Linear(n_latents, k * (WIDTH + 1)),
            nn.ReLU(),
            nn.Linear(k * (WIDTH + 1), k * WIDTH),
            nn.Unflatten(1, (1, k, WIDTH)),
        )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu = self.mu(self.encoder(x))
        logvar = torch.where(self.mu.weight.any(1), self.logvar, 0.0)  # a latent that knows nothing follows the prior
        return mu, logvar.expand_as(mu)

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z)


def factor_vae(world: FactorWorld, seed: int = 0, spare: int = 0) -> FactorVAE:
    """The VAE whose latents are the factors, in another order (`.latents` tells), and `spare` more."""
    k = len(world.factors)
    places = torch.randperm(k + spare, generator=torch.Generator().manual_seed(seed))[:k].tolist()
    model = FactorVAE(world.factors, dict(zip(world.factors, places, strict=True)), k + spare)
    read, latent, therm, draw = model.encoder[1], model.mu, model.decoder[0], model.decoder[2]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for j, z in enumerate(places):
            rows = slice(j * (WIDTH + 1), (j + 1) * (WIDTH + 1))
            for half in range(2):
                start = j * WIDTH + half * WIDTH // 2
                read.weight[2 * j + half, start : start + WIDTH // 2] = 2 * LIMIT / WIDTH
            latent.weight[z, 2 * j : 2 * j + 2], latent.bias[z] = 1.0, -LIMIT
            therm.weight[rows, z] = WIDTH / (2 * LIMIT)  # unit i: how far the bar reaches beyond i pixels
            therm.bias[rows] = WIDTH / 2 - torch.arange(WIDTH + 1.0)
            for p in range(WIDTH):
                draw.weight[j * WIDTH + p, rows.start + p], draw.weight[j * WIDTH + p, rows.start + p + 1] = 1.0, -1.0
    return model


def rotated(model: FactorVAE, seed: int = 0) -> FactorVAE:
    """A copy that means the same by other latents: z' = R z, R a random orthogonal matrix (kept as `.rotation`)."""
    turned = copy.deepcopy(model)
    n = model.mu.out_features
    q, r = torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    turned.rotation = q * torch.sign(torch.diagonal(r))
    with torch.no_grad():
        turned.mu.weight.copy_(turned.rotation @ model.mu.weight.double())
        turned.mu.bias.copy_(turned.rotation @ model.mu.bias.double())
        turned.decoder[0].weight.copy_(model.decoder[0].weight.double() @ turned.rotation.T)
    return turned


def untrained(world: FactorWorld, seed: int = 0) -> FactorVAE:
    """The same layers with the random weights that torch starts from; `.latents` says nothing of it."""
    k = len(world.factors)
    model = FactorVAE(world.factors, {name: j for j, name in enumerate(world.factors)}, k)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Linear):  # U(+-1/sqrt(fan_in)), as nn.Linear draws
                for parameter in layer.parameters():
                    parameter.uniform_(
                        -1 / math.sqrt(layer.in_features), 1 / math.sqrt(layer.in_features), generator=generator
                    )
    return model
