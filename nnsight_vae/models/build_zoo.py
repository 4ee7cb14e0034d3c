"""Make the bundled checkpoints again: ``OMP_NUM_THREADS=1 python -m nnsight_vae.models.build_zoo``.

Seeded; each takes minutes on one core, shows a progress bar, and goes on where it was if it is stopped and run again.
Same machine, same library versions and one thread give the same weights to the bit. What came out, as the records tell it:
``python -m nnsight_vae.models.build_zoo --table > nnsight_vae/models/zoo/RESULTS.md``.
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
from .bundle import ZOO, read_record
from .families import BetaTCObjective, DIPObjective, FactorObjective, VQObjective
from .files import write_json, write_tensors
from .labels import Labels
from .measured import measure, measure_codes, measure_readout
from .networks import GaussianVAE
from .objectives import Objective
from .training import train
from .vq import VQVAE

_STEPS = 3_000
_HELD_OUT = 1_000
_TRAINING_SEED, _LABEL_SEED, _HELD_OUT_SEED = 1, 2, 3


_RESULTS = """# The bundled models of sprites

Made by `python -m nnsight_vae.models.build_zoo`; this table by `python -m nnsight_vae.models.build_zoo --table`, from their records.
Means over {held_out} held-out images of `independent_sprites`, in nats per image: the reconstruction (Bernoulli, decoding posterior
means; that of a perfect one is 27.5), the KL, and the total correlation of a Gaussian with the covariance of the aggregate
posterior, which sees linear dependence only (and shows up to .02 in a sample of this size where there is none). In use: at least
0.1 nats.

| model | objective | steps | seed | reconstruction | KL | total correlation | in use |
|---|---|---|---|---|---|---|---|
{rows}

The penalties are mild, so that reconstructions are those of the VAE or better: FactorVAE and beta-TC-VAE have an eighth of its total
correlation at 9 % fewer nats, DIP-VAE-II next to none at 12 % more. The beta-TC-VAE learns slower and was trained twice as long: after
{steps:,} steps it had half the VAE's total correlation (0.774) at 21 % more nats. One seed each: differences of a few nats between
trainings of this length are chance.
"""


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
    steps: int = _STEPS


def _sprites(description: str, objective: Objective, architecture: str = "ConvVAE", steps: int = _STEPS) -> Recipe:
    return Recipe(
        f"{description} on independent sprites",
        objective,
        data="independent_sprites",
        images=20_000,
        architecture=architecture,
        latent=10,
        steps=steps,
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
    # mild, so that these two reconstruct as the VAE does and can be compared with it in what else they do
    "sprites-factor-vae": _sprites("FactorVAE, gamma 2,", FactorObjective(gamma=2.0)),
    "sprites-beta-tc-vae": _sprites("beta-TC-VAE, beta 2,", BetaTCObjective(beta=2.0), steps=6_000),  # learns slower
    "sprites-dip-vae-ii": _sprites("DIP-VAE-II, weights 10,", DIPObjective()),
    "sprites-vq-vae": _sprites("VQ-VAE, 64 codes at 4 x 4 places,", VQObjective(), "VQVAE"),
}


def build_model(name: str, out: Path, work: Path, steps: int | None = None, progress: bool = True) -> dict[str, Any]:
    """Train one bundled model, measure it on held-out images, and write `<name>.safetensors` and `<name>.json`.

    The labelled model sees images whose factors are set independently of each other (`do` of all factors), since labels
    alone do not keep a decoder from using the correlations of the observational images.

    Args:
        name: one of `RECIPES`.
        out: folder for the two files.
        work: folder for the checkpoints of the training.
        steps: optimiser steps; by default those of the recipe.
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
        steps=recipe.steps if steps is None else steps,
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


def results() -> str:
    """What the bundled models of sprites do on held-out images, as a table in Markdown, from their records."""
    rows = [_row(read_record(name)) for name in RECIPES if name.startswith("sprites-")]
    return _RESULTS.format(
        held_out=f"{_HELD_OUT:,}", steps=_STEPS, rows="\n".join(f"| {' | '.join(row)} |" for row in rows)
    )


def _row(record: dict[str, Any]) -> tuple[str, ...]:
    found, training = record["held_out"]["observational"], record["training"]
    coded = "codes" in found
    return (
        record["name"],
        record["description"].removesuffix(" on independent sprites").rstrip(","),
        f"{training['steps']:,}",
        str(training["seed"]),
        f"{found['reconstruction']:.1f}",
        "-" if coded else f"{found['kl']:.1f}",
        "-" if coded else f"{found['total_correlation']:.3f}",
        f"{found['used']} of {found['codes']} codes, perplexity {found['perplexity']:.0f}"
        if coded
        else f"{len(found['active'])} of {record['arguments']['latent']} latents",
    )


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
    parser.add_argument("--table", action="store_true", help="print what the bundled models do, and train none")
    arguments = parser.parse_args()
    if arguments.table:
        print(results(), end="")  # noqa: T201
        return
    for name in arguments.names:
        build_model(name, arguments.out, arguments.work)


if __name__ == "__main__":
    main()
