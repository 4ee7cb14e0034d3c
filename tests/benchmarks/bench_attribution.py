"""What explaining all latents at once saves over Captum, latent by latent. Run: python tests/benchmarks/bench_attribution.py"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from captum.attr import IntegratedGradients, LayerConductance, LayerGradCam
from measuring import seconds

import nnsight_vae as nv
from nnsight_vae.attribution import (
    LatentConductance,
    LatentGradCam,
    LatentIntegratedGradients,
    captum_forward,
    captum_layer,
)
from nnsight_vae.models import MLPVAE, ConvVAE

ROUNDS = 7


def gain(ours: Callable[[], object], loop: Callable[[], object]) -> tuple[float, float, float]:
    """Median over rounds of loop / ours, the two run in turn; and both medians in seconds."""
    ours(), loop()
    pairs = [(seconds(ours), seconds(loop)) for _ in range(ROUNDS)]
    a, b = (statistics.median(p[i] for p in pairs) for i in (0, 1))
    return statistics.median(p[1] / p[0] for p in pairs), a, b


def report(name: str, vae: nv.VAE, n: int, layer: str, conv: str | None) -> None:
    generator = torch.Generator().manual_seed(0)
    x, b = (torch.rand(n, *vae.sites["input"].shape, generator=generator) for _ in range(2))
    forward, latents = captum_forward(vae), range(vae.sites["latent.mu"].n_units)
    captum, ours = IntegratedGradients(forward), LatentIntegratedGradients(vae)
    rows = {
        "integrated gradients": (
            lambda: ours.attribute(x, b, n_steps=50),
            lambda: [captum.attribute(x, b, k, n_steps=50) for k in latents],
        )
    }
    units, one = LatentConductance(vae, layer), LayerConductance(forward, captum_layer(vae, layer))
    rows[f"conductance at {layer}"] = (
        lambda: units.attribute(x, b, n_steps=50),
        lambda: [one.attribute(x, b, k, n_steps=50) for k in latents],
    )
    if conv is not None:
        maps, map_ = LatentGradCam(vae, conv), LayerGradCam(forward, captum_layer(vae, conv))
        rows[f"attention maps at {conv}"] = (
            lambda: maps.attribute(x),
            lambda: [map_.attribute(x, k) for k in latents],
        )
    for method, (all_at_once, loop) in rows.items():
        ratio, a, c = gain(all_at_once, loop)
        print(f"{name}, {len(latents)} latents, n={n}, {method}: {a:.3f} s, Captum one by one {c:.3f} s, {ratio:.2f}x")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for n in (2, 8):
        report("pendulum-beta-vae", nv.load("pendulum-beta-vae"), n, "encoder.7", "encoder.7")
    torch.manual_seed(0)
    report("ConvVAE 32x32", nv.VAE(ConvVAE(image_shape=(1, 32, 32), latent=10)), 8, "encoder.3", "encoder.3")
    report("MLPVAE 28x28", nv.VAE(MLPVAE(image_shape=(1, 28, 28), latent=16)), 8, "encoder.2", None)
