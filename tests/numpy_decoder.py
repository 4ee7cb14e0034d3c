"""A decoder of four latents in numpy, one of them dead, and what setting a latent changes."""

import numpy as np

CLAMPS = np.linspace(-3, 3, 7)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


Z = normal(30, 4, seed=1)  # codes of 30 examples
INNER, OUTER = normal(4, 6, seed=2), normal(6, 9, seed=3)
INNER[3] = 0  # latent 3 is dead


def hidden(z):
    return np.tanh(z @ INNER)


def decode(z):
    return hidden(z) @ OUTER


def linear(weights):
    return lambda z: z @ weights


def clamped(z, latent, value):
    z = z.copy()
    z[:, latent] = value
    return z


def displacements(decoder, z=Z):
    base = decoder(z)
    return np.array(
        [[np.linalg.norm(decoder(clamped(z, k, v)) - base, axis=1) for v in CLAMPS] for k in range(z.shape[1])]
    )


def changes(decoder, z=Z):
    return np.array([decoder(clamped(z, k, 0.0)) - decoder(z) for k in range(z.shape[1])])
