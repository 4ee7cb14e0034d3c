"""Exact Shapley values of latents against Captum's, in one process. Run: python tests/benchmarks/bench_shapley.py"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from captum.attr import ShapleyValues

import nnsight_vae as nv
from nnsight_vae.attribution import LatentShapley, captum_forward
from nnsight_vae.models import ConvVAE

ROUNDS = 3
LATENTS = 6


def seconds(function: Callable[[], object]) -> float:
    times = []
    for _ in range(ROUNDS):
        start = time.thread_time()
        function()
        times.append(time.thread_time() - start)
    return statistics.median(times)


def main() -> None:
    vae = nv.VAE(ConvVAE(image_shape=(1, 32, 32), latent=LATENTS, channels=(16, 32)))
    names = ("top", "bottom")
    readout = nv.readouts.Region({name: (slice(16 * i, 16 * i + 16), slice(0, 32)) for i, name in enumerate(names)})
    forward, z = captum_forward(vae, readout, of="z"), torch.randn(8, LATENTS)
    ours = LatentShapley(vae, readout)

    def captums(targets: int, per_eval: int) -> torch.Tensor:
        method = ShapleyValues(forward)
        parts = [method.attribute(z, target=t, perturbations_per_eval=per_eval) for t in range(targets)]
        return torch.stack(parts, 1)

    print(
        f"{LATENTS} latents, 8 examples; largest difference {float((ours.attribute(z) - captums(2, 64)).abs().max()):.1e}"
    )
    for targets, target in ((1, 0), (2, None)):
        fast = seconds(lambda target=target: ours.attribute(z, target=target))
        for per_eval in (1, 64):
            slow = seconds(lambda targets=targets, per_eval=per_eval: captums(targets, per_eval))
            print(
                f"{targets} target(s): ours {fast * 1e3:7.1f} ms, Captum ({per_eval} perturbations a pass) {slow * 1e3:8.0f} ms, "
                f"ratio {slow / fast:.0f}"
            )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
