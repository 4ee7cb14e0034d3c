"""Small VAEs of the shapes people write, as plain torch modules. Weights are seeded; BatchNorm statistics are non-trivial."""

from __future__ import annotations

import copy

import torch
from scipy.linalg import hadamard
from torch import Tensor, nn
from torch.nn import functional as F

import nnsight_vae as nv
from nnsight_vae.posterior import OtherPrior


def seeded(model: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "running_var" in name:
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            elif tensor.is_floating_point():
                fan_in = tensor[0].numel() if tensor.ndim > 1 else 4
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * fan_in**-0.5 * 1.5)
    return model


class ConvVAE(nn.Module):
    """Conv encoder and decoder with in-place ReLUs; forward samples, even in eval mode."""

    image = (3, 16, 16)

    def __init__(self, norm: bool = False, channels: int = 3) -> None:
        super().__init__()

        def block(layer: nn.Module, width: int) -> list[nn.Module]:
            return [layer, nn.BatchNorm2d(width), nn.ReLU(inplace=True)] if norm else [layer, nn.ReLU(inplace=True)]

        self.encoder = nn.Sequential(
            *block(nn.Conv2d(channels, 4, 4, 2, 1), 4),
            *block(nn.Conv2d(4, 6, 4, 2, 1), 6),
            nn.Flatten(),
            nn.Linear(96, 12),
            nn.ReLU(inplace=True),
        )
        self.fc_mu, self.fc_logvar = nn.Linear(12, 5), nn.Linear(12, 5)
        self.decoder = nn.Sequential(
            nn.Linear(5, 96),
            nn.ReLU(inplace=True),
            nn.Unflatten(1, (6, 4, 4)),
            *block(nn.ConvTranspose2d(6, 4, 4, 2, 1), 4),
            nn.ConvTranspose2d(4, channels, 4, 2, 1),
            nn.Sigmoid(),
        )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.encoder(x)
        return self.fc_mu(h), self.fc_logvar(h)

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mu, logvar = self.encode(x)
        return self.decode(mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)), mu, logvar


class MLPVAE(nn.Module):
    """Fully connected; functional activations, so that not every step is a module."""

    image = (20,)

    def __init__(self) -> None:
        super().__init__()
        self.enc1, self.enc2, self.heads = nn.Linear(20, 16), nn.Linear(16, 12), nn.Linear(12, 8)
        self.dec1, self.dec2 = nn.Linear(4, 16), nn.Linear(16, 20)

    def encode(self, x: Tensor) -> dict[str, Tensor]:
        h = self.heads(F.relu(self.enc2(torch.tanh(self.enc1(x)))))
        mu, logvar = h.chunk(2, -1)
        return {"mu": mu, "log_var": logvar}

    def decode(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.dec2(F.relu(self.dec1(z))))


class Residual(nn.Module):
    """x + f(x): the batch cannot grow inside f, whose other branch keeps its rows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.act, self.second = (
            nn.Conv2d(width, width, 3, 1, 1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.act(self.first(x)))


class ResidualVAE(nn.Module):
    """Residual blocks, a spatial latent, and a Normal posterior."""

    image = (1, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(1, 4, 4, 2, 1), Residual(4), nn.Conv2d(4, 4, 1)
        self.grow, self.refine, self.out = nn.Conv2d(2, 4, 3, 1, 1), Residual(4), nn.ConvTranspose2d(4, 1, 4, 2, 1)

    def encode(self, x: Tensor) -> torch.distributions.Distribution:
        mu, raw = self.head(self.block(self.stem(x))).chunk(2, 1)
        return torch.distributions.Independent(torch.distributions.Normal(mu, F.softplus(raw) + 1e-3), 3)

    def decode(self, z: Tensor) -> Tensor:
        return self.out(self.refine(self.grow(z)))


class VQVAE(nn.Module):
    """3 x 3 positions of 16 channels near one of 6 codes each; the decoder snaps them to it, straight-through, as libraries do.

    The codes are rows of a Hadamard matrix, 5.7 apart: no single channel, set to any value it takes, brings one nearer to another.
    """

    image = (1, 12, 12)

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(1, 6, 4, 4, bias=False)
        self.codebook = nn.Embedding(6, 16)
        self.decoder = nn.Sequential(nn.Conv2d(16, 8, 3, 1, 1), nn.Tanh(), nn.ConvTranspose2d(8, 1, 4, 4))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        nearly_one_hot = (1000 * self.encoder(x - 0.5)).softmax(1)
        mu = torch.einsum("nkhw,kc->nchw", nearly_one_hot, self.codebook.weight)
        return mu, torch.full_like(mu, -8.0)

    def codes(self, z: Tensor) -> Tensor:
        return (z[:, None] - self.codebook.weight[None, :, :, None, None]).square().sum(2).argmin(1)

    def decode(self, z: Tensor) -> Tensor:
        snapped = self.codebook(self.codes(z)).movedim(-1, 1)
        return self.decoder(z + (snapped - z).detach())


def vq_vae(seed: int = 0) -> VQVAE:
    model = seeded(VQVAE(), seed)
    with torch.no_grad():
        model.codebook.weight.copy_(torch.from_numpy(hadamard(16)[1:7]))
    return model


def all_vaes() -> dict[str, nn.Module]:
    models = {"conv": ConvVAE(), "mlp": MLPVAE(), "batchnorm": ConvVAE(norm=True), "residual": ResidualVAE()}
    return {name: seeded(model, seed) for seed, (name, model) in enumerate(models.items())}


def images(model: nn.Module, n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, *model.image, generator=torch.Generator().manual_seed(seed))


def wrapped_with_pairs(model: nn.Module, n: int = 11) -> tuple[nv.VAE, nv.Pairs]:
    """A copy of a model, wrapped, and n pairs of images with noise for it."""
    vae = nv.VAE(copy.deepcopy(model))
    base, source = images(model, n), images(model, n, seed=1)
    vae.encode(base)
    shape = vae.sites["latent.mu"].shape
    return vae, nv.Pairs(base, source, eps=torch.randn(n, *shape, generator=torch.Generator().manual_seed(2)))


def unwrapped(vae: nv.VAE) -> nn.Module:
    """The model of `all_vaes` that was wrapped, as it was before."""
    weights = next(vae.module.parameters())
    return next(
        m for m in all_vaes().values() if type(m) is type(vae.module) and torch.equal(next(m.parameters()), weights)
    )


class LadderVAE(nn.Module):
    """Two latents: z1 of the deeper features, a vector; z0 of the shallower ones and z1, with positions. The decoder reads both."""

    image = (1, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Conv2d(1, 4, 4, 2, 1), nn.Linear(64, 10)
        self.q1, self.down = nn.Linear(10, 6), nn.Linear(3, 16)
        self.q0 = nn.Conv2d(5, 4, 3, 1, 1)
        self.grow, self.out = nn.Linear(3, 16), nn.ConvTranspose2d(3, 1, 4, 2, 1)

    def infer(self, x: Tensor, draw) -> None:
        low = torch.tanh(self.low(x))
        z1 = draw(1, self.q1(torch.tanh(self.high(low.flatten(1)))).chunk(2, 1))
        down = torch.tanh(self.down(z1)).view(-1, 1, 4, 4)
        draw(0, dict(zip(("mu", "logvar"), self.q0(torch.cat([low, down], 1)).chunk(2, 1), strict=True)))

    def decode(self, z0: Tensor, z1: Tensor) -> Tensor:
        return torch.sigmoid(self.out(torch.cat([z0, torch.tanh(self.grow(z1)).view(-1, 1, 4, 4)], 1)))

    def forward(self, x: Tensor) -> Tensor:
        drawn = {}

        def draw(k, stated):
            mu, logvar = stated.values() if isinstance(stated, dict) else stated
            drawn[k] = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
            return drawn[k]

        self.infer(x, draw)
        return self.decode(drawn[0], drawn[1])


class FlowVAE(nn.Module):
    """A Gaussian that planar flows f(z) = z + u tanh(w z + b) bend before it is decoded (Rezende and Mohamed 2015, eq. 10)."""

    image = (1, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 6))
        self.gates = nn.ModuleList(nn.Linear(3, 1) for _ in range(2))
        self.steps = nn.ModuleList(nn.Linear(1, 3, bias=False) for _ in range(2))
        self.decoder = nn.Sequential(nn.Linear(3, 12), nn.ReLU(), nn.Linear(12, 64), nn.Unflatten(1, (1, 8, 8)))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.encoder(x).chunk(2, 1)

    def flow(self, z: Tensor) -> Tensor:
        for gate, step in zip(self.gates, self.steps, strict=True):
            z = z + step(torch.tanh(gate(z)))
        return z

    def decode(self, z: Tensor) -> Tensor:
        """Of what left the flow, as flow VAEs have it: not the inverse of encode."""
        return torch.sigmoid(self.decoder(z))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mu, logvar = self.encode(x)
        return self.decode(self.flow(mu + torch.exp(0.5 * logvar) * torch.randn_like(mu))), mu, logvar


class WithFlow(nv.adapters.Adapter):
    """The latent is what enters the flow; its prior is not N(0, 1)."""

    def encode(self, model: FlowVAE, x: Tensor) -> nv.Posterior:
        return OtherPrior(*model.encode(x))

    def decode(self, model: FlowVAE, z: Tensor) -> Tensor:
        return model.decode(model.flow(z))


def ladder(seed: int = 0, standard_prior: bool = False) -> nv.VAE:
    model = seeded(LadderVAE(), seed)
    return nv.adapt(model, levels=2, encoder=model.infer, decoder=model.decode, standard_prior=standard_prior)


class Tokens(nn.Module):
    """Linear layers over the last of three axes, in-place functions after them, and one layer that is used twice."""

    image = (3, 5)

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.twice, self.heads = nn.Linear(5, 7), nn.Linear(7, 7), nn.Linear(21, 8)
        self.grow, self.out = nn.Linear(4, 21), nn.Linear(7, 5)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.twice(self.embed(x).relu_()).tanh_()
        return self.heads(h.flatten(1)).chunk(2, 1)

    def decode(self, z: Tensor) -> Tensor:
        return self.out(self.twice(self.grow(z).view(-1, 3, 7).tanh_()).mul_(0.5))
