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
from jaxtyping import UInt8
from torch import Tensor, nn

from ..datasets.base import Batch
from ..datasets.loading import load
from ..datasets.procedural import Procedural
from .bundle import ZOO
from .families import BetaTCObjective, DIPObjective, FactorObjective, VQObjective
from .files import write_json, write_tensors
from .measured import measure, measure_codes, measure_readout
from .networks import GaussianVAE
from .objectives import Objective
from .training import Labels, train
from .vq import VQVAE

_STEPS = 3_000
_HELD_OUT = 1_000
_TRAINING_SEED, _LABEL_SEED, _HELD_OUT_SEED = 1, 2, 3


@dataclass(frozen=True)
class Recipe:
    """What distinguishes one bundled model from another."""

    description: str
    objective: Objective
    labelled: int = 0
    data: str = "pendulum"
    images: int = 10_000
    architecture: str = "ConvVAE"
    latent: int = 8


def _sprites(description: str, objective: Objective, architecture: str = "ConvVAE") -> Recipe:
    return Recipe(
        f"{description} on independent sprites",
        objective,
        data="independent_sprites",
        images=20_000,
        architecture=architecture,
        latent=10,
    )


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
    "sprites-vae": _sprites("VAE", Objective()),
    "sprites-beta-vae": _sprites("beta-VAE, beta 4,", Objective(beta=4.0)),
    "sprites-factor-vae": _sprites("FactorVAE, gamma 20,", FactorObjective(gamma=20.0)),
    "sprites-beta-tc-vae": _sprites("beta-TC-VAE, beta 4,", BetaTCObjective(beta=4.0)),
    "sprites-dip-vae-ii": _sprites("DIP-VAE-II, weights 10,", DIPObjective()),
    "sprites-vq-vae": _sprites("VQ-VAE, 64 codes at 4 x 4 places,", VQObjective(), "VQVAE"),
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
    recipe = RECIPES[name]
    data = cast(Procedural, load(recipe.data))
    labels = None
    images = data.images_u8(recipe.images, _TRAINING_SEED)
    if recipe.labelled:
        images = _as_u8(data.sample_independent(recipe.images, _TRAINING_SEED))
        few = data.sample_independent(recipe.labelled, _LABEL_SEED)
        labels = Labels(_as_u8(few), few.factors, data.factors)
    trained = train(
        images,
        objective=recipe.objective,
        architecture=recipe.architecture,
        arguments={"latent": recipe.latent},
        labels=labels,
        steps=steps,
        data=data.name,
        out=work / name,
        progress=progress,
    )
    seeds = {"images": _TRAINING_SEED, "labelled_images": _LABEL_SEED, "held_out_images": _HELD_OUT_SEED}
    record = {
        "name": name,
        "description": recipe.description,
        **trained.config,
        "images": "do(all factors), independent" if recipe.labelled else "observational",
        "seeds": seeds if recipe.labelled else {k: v for k, v in seeds.items() if k != "labelled_images"},
        "held_out": _held_out(trained.module, data),
    }
    write_tensors(out / f"{name}.safetensors", trained.module.state_dict())
    write_json(out / f"{name}.json", record)
    return record


def _held_out(module: nn.Module, data: Procedural) -> dict[str, Any]:
    """What the trained model does on images that it has not seen."""
    drawn = {"observational": data.sample(_HELD_OUT, _HELD_OUT_SEED)}
    if isinstance(module, VQVAE):
        return {what: measure_codes(module, batch) for what, batch in drawn.items()}
    if not data.graph.edges:  # observational images have independent factors already, and no readout is bundled
        return {what: measure(cast(GaussianVAE, module), data.factors, batch) for what, batch in drawn.items()}
    drawn["independent"] = data.sample_independent(_HELD_OUT, _HELD_OUT_SEED)
    gaussian = cast(GaussianVAE, module)
    return {
        what: measure(gaussian, data.factors, batch) | measure_readout(gaussian, data.readout(), batch)
        for what, batch in drawn.items()
    }


def _as_u8(batch: Batch) -> UInt8[Tensor, "n c h w"]:
    return (batch.images * 255).round().to(torch.uint8)


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
