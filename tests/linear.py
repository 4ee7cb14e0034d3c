"""A linear world, a linear-Gaussian VAE for it, and a linear readout: every quantity has a closed form."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

import nnsight_vae as nv
import nnsight_vae.levels.doses
import nnsight_vae.levels.inputs
from nnsight_vae.causal import SCM, Mechanism
from nnsight_vae.datasets.base import Batch, Dataset
from nnsight_vae.pairs import Pairs


class LinearVAE(nn.Module):
    """mu = A x, logvar = const, reconstruction = B z; one hidden linear layer on each side so that there are units to patch."""

    def __init__(self, a1: Tensor, a2: Tensor, b1: Tensor, b2: Tensor, logvar: float = -2.0) -> None:
        super().__init__()
        self.enc, self.mu = linear(a1), linear(a2)
        self.dec, self.out = linear(b1), linear(b2)
        self.logvar = logvar

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu = self.mu(self.enc(x.flatten(1)))
        return mu, torch.full_like(mu, self.logvar)

    def decode(self, z: Tensor) -> Tensor:
        return self.out(self.dec(z))


def linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


class LinearReadout:
    """Y = C x."""

    def __init__(self, c: Tensor, names: tuple[str, ...] | None = None) -> None:
        self.c = c
        self.names = names or tuple(f"y{i}" for i in range(len(c)))

    def __call__(self, reconstruction: Tensor) -> Tensor:
        return reconstruction.flatten(1) @ self.c.T


def random_linear_vae(seed: int = 0, d: int = 6, h: int = 5, k: int = 3) -> LinearVAE:
    generator = torch.Generator().manual_seed(seed)
    return LinearVAE(
        *(torch.randn(shape, generator=generator, dtype=torch.double) for shape in ((h, d), (k, h), (h, k), (d, h)))
    )


class LinearWorld(Dataset):
    """Three factors cause -> effect, other; the "image" is one row of three pixels, the factors themselves."""

    name, factors, image_shape = "linear world", ("cause", "effect", "other"), (1, 1, 3)
    weight = 0.8

    def __init__(self) -> None:
        normal = lambda rng, n: rng.normal(size=n)
        self.scm = SCM(
            {
                "cause": Mechanism((), lambda parents, noise: noise, normal),
                "effect": Mechanism(
                    ("cause",), lambda parents, noise: self.weight * parents["cause"] + 0.6 * noise, normal
                ),
                "other": Mechanism((), lambda parents, noise: noise, normal),
            }
        )

    @property
    def graph(self):
        return self.scm.graph

    def _batch(self, values: np.ndarray, noise: np.ndarray | None) -> Batch:
        return Batch(torch.from_numpy(values)[:, None, None, :], torch.from_numpy(values), noise)

    def sample(self, n: int, seed: int = 0) -> Batch:
        return self._batch(*self.scm.sample(n, np.random.default_rng(seed)))

    def counterfactual(self, batch: Batch, **values) -> Batch:
        values = {name: np.asarray(value) for name, value in values.items()}
        return self._batch(self.scm.counterfactual(batch.noise, values), batch.noise)

    def images_u8(self, n: int, seed: int = 0):
        raise NotImplementedError

    def pairs(self, factor: str, n: int, seed: int = 0, propagate: bool = True) -> Pairs:
        base = self.sample(n, seed)
        column = self.factors.index(factor)
        held = {} if propagate else {f: base.factors[:, j] for j, f in enumerate(self.factors)}
        source = self.counterfactual(base, **(held | {factor: base.factors[:, column] + 2.0}))
        return Pairs(base.images, source.images, factor=factor, propagate=propagate)

    def readout(self, names=None, progress=None):
        return LinearReadout(torch.eye(3, dtype=torch.double), self.factors)

    def _fit_readout(self, progress):
        raise NotImplementedError


SITES = ["enc", "latent.mu"]


def linear_world(seed: int = 0) -> tuple[nv.VAE, np.ndarray]:
    """A linear VAE of the linear world's three pixels, and the matrix from pixels to the units of `SITES`."""
    model = random_linear_vae(seed, d=3)
    a1, a2 = model.enc.weight.detach(), model.mu.weight.detach()
    return nv.VAE(model), torch.cat([a1, a2 @ a1]).numpy()


def pixels(batch: Tensor) -> np.ndarray:
    return batch.flatten(1).numpy().T
