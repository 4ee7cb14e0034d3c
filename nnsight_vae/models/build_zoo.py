"""Make the bundled checkpoints again: ``OMP_NUM_THREADS=1 python -m nnsight_vae.models.build_zoo``.

Seeded; each takes minutes on one core, shows a progress bar, and goes on where it was if it is stopped and run again.
Same machine, same library versions and one thread give the same weights to the bit.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ..datasets.base import Batch
from ..datasets.pendulum import pendulum
from ..datasets.procedural import Procedural
from .bundle import ZOO
from .files import write_json, write_tensors
from .networks import GaussianVAE
from .objectives import Objective, gaussian_kl, reconstruction_loss
from .training import Labels, train

_STEPS = 3_000
_IMAGES = 10_000
_HELD_OUT = 1_000
_TRAINING_SEED, _LABEL_SEED, _HELD_OUT_SEED = 1, 2, 3
_ACTIVE_NATS = 0.1


@dataclass(frozen=True)
class Recipe:
    """What distinguishes one bundled model from another."""

    description: str
    objective: Objective
    labelled: int = 0


RECIPES = {
    "pendulum-beta-vae": Recipe(
        "beta-VAE of the pendulum, unsupervised: expect latents that mix factors",
        Objective(beta=4.0),
    ),
    "pendulum-labelled-vae": Recipe(
        "the same network with 512 labelled images tying latents 0-3 to the factors, trained on independent factors",
        Objective(beta=4.0, label_weight=100.0),
        labelled=512,
    ),
}


def build_model(name: str, out: Path, work: Path, steps: int = _STEPS, progress: bool = True) -> dict[str, Any]:
    """Train one bundled model, measure it on held-out images, and write `<name>.safetensors` and `<name>.json`.

    The labelled model sees images whose factors are set independently of each other (`do` of all factors), since labels
    alone do not keep a decoder from using the correlations of the observational images.

    Args:
        name: one of `RECIPES`.
        out: folder for the two files.
        work: folder for the checkpoints of the training.
        steps: optimiser steps.
        progress: show a progress bar.

    Returns: the record that was written.
    """
    recipe, data = RECIPES[name], pendulum()
    labels = None
    images = data.images_u8(_IMAGES, _TRAINING_SEED)
    if recipe.labelled:
        images = _as_u8(data.sample_independent(_IMAGES, _TRAINING_SEED))
        few = data.sample_independent(recipe.labelled, _LABEL_SEED)
        labels = Labels(_as_u8(few), few.factors, data.factors)
    trained = train(
        images,
        objective=recipe.objective,
        labels=labels,
        steps=steps,
        data=data.name,
        out=work / name,
        progress=progress,
    )
    module = cast(GaussianVAE, trained.module)  # no recipe is of a VQ-VAE
    record = {
        "name": name,
        "description": recipe.description,
        **trained.config,
        "images": "do(all factors), independent" if recipe.labelled else "observational",
        "seeds": {"images": _TRAINING_SEED, "labelled_images": _LABEL_SEED, "held_out_images": _HELD_OUT_SEED},
        "held_out": {
            "observational": measure(module, data, data.sample(_HELD_OUT, _HELD_OUT_SEED)),
            "independent": measure(module, data, data.sample_independent(_HELD_OUT, _HELD_OUT_SEED)),
        },
    }
    write_tensors(out / f"{name}.safetensors", trained.module.state_dict())
    write_json(out / f"{name}.json", record)
    return record


@torch.no_grad()
def measure(module: GaussianVAE, data: Procedural, batch: Batch) -> dict[str, Any]:
    """What a trained model does on held-out images, decoding posterior means.

    Args:
        module: the model.
        data: where the images are from; gives the readout.
        batch: held-out images with their factors.

    Returns:
        reconstruction, mse: Bernoulli nats per image, and mean squared error per pixel.
        reconstruction_floor: the nats of a perfect reconstruction, not 0 since pixels are not all black or white.
        kl, kl_per_latent: nats per image. active: the latents with at least 0.1 nats.
        correlation: of mu_k with each factor, `[latent][factor]`.
        readout_r2: of the factors read from reconstructions, against the true ones.
        effect: `[latent][factor]`: change of a read factor, in its standard deviations, per standard deviation of z_k:
            half of what do(z_k = mean + sd) differs by from do(z_k = mean - sd), mean and sd of mu_k over the batch,
            the other latents at their own mu; averaged over the batch.
    """
    mu, logvar = module.encode(batch.images)
    reconstruction = module.decode(mu)
    kl = gaussian_kl(mu, logvar).mean(0)
    readout = data.readout()
    true = (batch.factors - readout.mean) / readout.sd
    effects = []
    for k in range(mu.shape[1]):
        low, high = (readout(module.decode(_set(mu, k, sign))) for sign in (-1, 1))
        effects.append((high - low).mean(0) / 2)
    return {
        "images": len(batch),
        "reconstruction": float(reconstruction_loss(reconstruction, batch.images).mean()),
        "reconstruction_floor": float(reconstruction_loss(batch.images, batch.images).mean()),
        "mse": float((reconstruction - batch.images).square().mean()),
        "kl": float(kl.sum()),
        "kl_per_latent": _rounded(kl),
        "active": (kl >= _ACTIVE_NATS).nonzero().flatten().tolist(),
        "factors": list(data.factors),
        "correlation": _rounded(torch.corrcoef(torch.cat([mu.T, batch.factors.T]))[: mu.shape[1], mu.shape[1] :]),
        "readout_r2": _rounded(1 - (readout(reconstruction) - true).square().mean(0) / true.var(0, correction=0)),
        "effect": _rounded(torch.stack(effects)),
    }


def _set(mu: Float[Tensor, "n latent"], k: int, sds: int) -> Float[Tensor, "n latent"]:
    z = mu.clone()
    z[:, k] = mu[:, k].mean() + sds * mu[:, k].std()
    return z


def _as_u8(batch: Batch) -> UInt8[Tensor, "n c h w"]:
    return (batch.images * 255).round().to(torch.uint8)


def _rounded(values: Tensor) -> Any:
    return [_rounded(row) for row in values] if values.ndim > 1 else [round(float(value), 4) for value in values]


def main() -> None:
    """Command line: build all bundled models, or the named ones."""
    parser = argparse.ArgumentParser(description="Train the bundled models again.")
    parser.add_argument("names", nargs="*", default=list(RECIPES), help="which; default all")
    parser.add_argument("--out", type=Path, default=ZOO, help="folder for the models")
    parser.add_argument(
        "--work", type=Path, default=Path("build/zoo"), help="folder for the checkpoints of the training"
    )
    arguments = parser.parse_args()
    for name in arguments.names:
        build_model(name, arguments.out, arguments.work)


if __name__ == "__main__":
    main()
