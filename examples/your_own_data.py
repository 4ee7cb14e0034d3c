"""Your own VAE on your own data, from drawing the world to the four answers: which units, monosemantic or not, the graph, how sure.

The world is a causal model and a function that draws it. Where there are only images and factors, with no way to draw new ones:
`nv.datasets.from_arrays(images, factors, names=[...])`; pairs are then matched, and what needs counterfactuals says so.
"""

import numpy as np
import torch
from torch import nn

import nnsight_vae as nv
from nnsight_vae.causal import SCM, Mechanism
from nnsight_vae.datasets import Procedural, Renderer

LIMITS = {"x": (3, 12), "size": (1, 3), "brightness": (0.3, 1.0)}


def uniform(low, high):
    return lambda rng, n: rng.uniform(low, high, n)


def draw(factors):
    """[n, factor] -> uint8 images [n, channel, row, column]: a blob."""
    x, size, brightness = (factors[:, i, None, None] for i in range(3))
    rows, columns = np.mgrid[:16, :16]
    blob = brightness * np.exp(-((columns - x) ** 2 + (rows - 8) ** 2) / (2 * size**2))
    return (255 * blob).round().astype(np.uint8)[:, None]


class MyVAE(nn.Module):
    def __init__(self, latents=4):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 4, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 64), nn.ReLU()
        )  # fmt: skip
        self.heads = nn.Linear(64, 2 * latents)
        self.decoder = nn.Sequential(
            nn.Linear(latents, 64), nn.ReLU(), nn.Linear(64, 256), nn.ReLU(), nn.Unflatten(1, (16, 4, 4)),
            nn.ConvTranspose2d(16, 16, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(16, 1, 4, 2, 1), nn.Sigmoid(),
        )  # fmt: skip

    def encode(self, x):
        return self.heads(self.encoder(x)).chunk(2, dim=1)  # mu, logvar

    def decode(self, z):
        return self.decoder(z)


def train(model, images, steps=1500):
    optimiser = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(steps):
        x = images[torch.randint(len(images), (64,))]
        mu, logvar = model.encode(x)
        reconstruction = model.decode(mu + torch.randn_like(mu) * (logvar / 2).exp())
        kl = (mu**2 + logvar.exp() - 1 - logvar).sum() / 2
        loss = (((reconstruction - x) ** 2).sum() / 0.02 + kl) / len(x)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


torch.manual_seed(0)
scm = SCM(
    {
        "x": Mechanism((), lambda parents, noise: noise, uniform(3, 12)),
        "size": Mechanism((), lambda parents, noise: noise, uniform(1, 3)),
        "brightness": Mechanism.additive(("size",), lambda p: 0.3 + 0.2 * (p["size"] - 1), uniform(0, 0.3)),
    }
)
data = Procedural.drawn("blobs", scm, Renderer(LIMITS, (1, 16, 16), draw))
vae = nv.VAE(train(MyVAE(), data.sample(6000, seed=1).images))
print(data, vae, sep="\n")

readout = data.readout(
    file="blobs_readout.safetensors"
)  # how factors are read off images: learned once, kept in the file
pairs = data.pairs("x", n=48, seed=0)
effects = nv.patch_activations(vae, pairs, readout=readout["x"])
print("\nWhich units carry x?", effects.significant(q=0.05, min_effect=0.2), sep="\n")

factor_map = nv.causal.map_factors(vae, data)
print("\nIs a latent monosemantic, and how sure?", factor_map, sep="\n")

graph = nv.causal.factor_graph(vae, data, factor_map, through="inputs")
print("\nDoes the model keep the graph of the world?", nv.causal.compare(graph, data.graph), sep="\n")
print(
    "\nDo its latents, swapped, do what the world does?",
    nv.causal.interchange_accuracy(vae, data, factor_map),
    sep="\n",
)

nv.plots.save_figure(factor_map.plot()[0], "blobs_factor_map.png")
