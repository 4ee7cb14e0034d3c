"""The command line: `nnsight-vae demo | analyze | train | info | circuits-benchmark`."""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from nnsight_vae.errors import NnsightVaeError

if TYPE_CHECKING:
    from nnsight_vae.circuits.known import Benchmark

# Before torch is loaded: idle threads that spin make small networks 15 times slower wherever the machine has other work.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Causal, mechanistic interpretability of VAEs.",
)

Model = Annotated[
    str,
    typer.Option(help="A bundled model (nnsight-vae info lists them), a folder from train, or package.module:factory."),
]
Weights = Annotated[Optional[Path], typer.Option(help="A .safetensors file for a factory's model.")]  # noqa: UP045 (typer on 3.10)
Data = Annotated[str, typer.Option(help="pendulum, digits, a folder with images and factors.csv, or an .npz file.")]
Out = Annotated[Path, typer.Option(help="Output folder; made if need be.")]
Seed = Annotated[int, typer.Option(help="Of everything random.")]


def _reported(command: Callable[..., None]) -> Callable[..., None]:
    """End a user's mistake, or an interruption, with a line that says what to do instead of a traceback."""

    @functools.wraps(command)
    def run(*args: object, **kwargs: object) -> None:
        try:
            command(*args, **kwargs)
        except NnsightVaeError as error:
            _say(f"error: {error}")
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            _say("interrupted: what was finished is kept, and the same command continues from there.")
            raise typer.Exit(130) from None

    return run


@app.command()
@_reported
def demo(
    out: Out = Path("demo-report"),
    pairs: Annotated[int, typer.Option(min=10, help="Pairs a factor.")] = 32,
    seed: Seed = 0,
) -> None:
    """Analyse the two bundled models, one entangled and one disentangled, on the pendulum."""
    import nnsight_vae as nv
    from nnsight_vae.report import Settings, analyze

    data = nv.datasets.load("pendulum")
    settings = Settings(factors=("angle",), pairs=pairs, images=128, seed=seed)
    found: list[str] = []
    for name in ("pendulum-beta-vae", "pendulum-labelled-vae"):
        _say(f"\n=== {name}: {nv.zoo()[name]}")
        start = time.monotonic()
        summary = analyze(nv.load(name), data, out / name, settings, name=name, say=_say_step)
        typer.echo(f"\n{summary}\n({time.monotonic() - start:.0f} s)")
        verdicts = summary.sections["factor_map"]["verdicts"]
        alone = [row for row in summary.sections["interchange"] if not row["propagate"] and not row["joint"]]
        swaps = [row["score"] for row in alone if row["score"] is not None]
        found.append(
            f"  {name:<24}{verdicts.count('monosemantic')} monosemantic and {verdicts.count('polysemantic')} polysemantic latents; "
            f"swapping one latent a factor reproduces the world with accuracy {sum(swaps) / len(swaps):.2f}"
        )
    typer.echo("\n".join(["\nSide by side", *found]))


@app.command()
@_reported
def analyze(
    model: Model,
    data: Data,
    out: Out,
    weights: Weights = None,
    factor: Annotated[
        list[str] | None,
        typer.Option(help="A factor whose units and circuit are sought; repeat for more. Default: all."),
    ] = None,
    pairs: Annotated[int, typer.Option(min=10, help="Pairs a factor.")] = 64,
    images: Annotated[int, typer.Option(min=20, help="Images for latent-level results.")] = 256,
    q: Annotated[float, typer.Option(min=0.0001, max=0.5, help="False discovery rate.")] = 0.05,
    min_effect: Annotated[float, typer.Option(min=0.0, help="Smallest effect that counts, in factor sd.")] = 0.05,
    seed: Seed = 0,
) -> None:
    """Analyse a model on a dataset and write a report folder."""
    import nnsight_vae as nv
    from nnsight_vae.report import Settings, analyze as run

    settings = Settings(tuple(factor) if factor else None, pairs, images, q, min_effect, seed)
    dataset, vae = nv.datasets.load(data), nv.load(model, weights)
    typer.echo(f"\n{run(vae, dataset, out, settings, name=model, say=_say_step)}")


@app.command()
@_reported
def train(
    data: Data,
    out: Out,
    objective: Annotated[
        str, typer.Option(help="vae, beta-vae, factor-vae, beta-tc-vae, dip-vae-ii or vq-vae.")
    ] = "beta-vae",
    beta: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Weight of the KL (beta-tc-vae: of the total correlation; vq-vae: of the commitment); default: the objective's own.",
        ),
    ] = None,
    network: Annotated[
        str, typer.Option(help="conv, conv-large (the size of disentanglement_lib), residual or mlp; vq-vae: a conv.")
    ] = "conv",
    latent: Annotated[int, typer.Option(min=1, help="Number of latents.")] = 8,
    images: Annotated[
        int, typer.Option(min=1, help="Training images; a fixed dataset gives at most what it has.")
    ] = 10_000,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 4_000,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a step.")] = 64,
    lr: Annotated[float, typer.Option(min=1e-8, help="Learning rate.")] = 1e-3,
    seed: Seed = 0,
) -> None:
    """Train a VAE; the same command again continues an interrupted run."""
    import nnsight_vae as nv
    from nnsight_vae.errors import DataError
    from nnsight_vae.models.architectures import NETWORKS
    from nnsight_vae.models.families import OBJECTIVES

    if network not in NETWORKS or objective not in OBJECTIVES:
        raise DataError(
            f"got network {network!r}, objective {objective!r}; expected one of {', '.join(NETWORKS)}, and {', '.join(OBJECTIVES)}."
        )
    architecture, arguments = NETWORKS[network]
    if objective == "vq-vae" and architecture == "ConvVAE":  # its codes need maps where a ConvVAE has linear layers
        architecture, arguments = "VQVAE", {k: v for k, v in arguments.items() if k != "hidden"}
    chosen = OBJECTIVES[objective] if beta is None else dataclasses.replace(OBJECTIVES[objective], beta=beta)
    dataset = nv.datasets.load(data)
    nv.models.train(
        dataset.images_u8(min(images, dataset.n_images or images), seed=seed),
        objective=chosen,
        architecture=architecture,
        arguments={**arguments, "latent": latent},
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        seed=seed,
        data=dataset.name,
        out=out,
    )
    typer.echo(
        f"trained: {out}/model.safetensors after {steps} steps; analyse it with\n  nnsight-vae analyze --model {out} --data {data} --out {out}/report"
    )


@app.command()
@_reported
def info(
    model: Annotated[str | None, typer.Option(help="As for analyze; none lists the bundled models.")] = None,
    weights: Weights = None,
) -> None:
    """Show a model's sites, or list the bundled models."""
    import nnsight_vae as nv

    typer.echo(str(nv.zoo()) if model is None else str(nv.load(model, weights)))


@app.command()
@_reported
def circuits_benchmark(
    models: Annotated[
        str, typer.Option(help="Of glass-box, masked and edge-strict, with commas between them.")
    ] = "glass-box,masked,edge-strict",
    methods: Annotated[
        str | None, typer.Option(help="How edges are scored, with commas between; default: all.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0, 1, ... of the models and pairs.")] = 1,
    pairs: Annotated[int, typer.Option(min=2, help="Pairs a factor.")] = 64,
    q: Annotated[float, typer.Option(min=0.0001, max=0.5, help="False discovery rate of what is selected.")] = 0.05,
    min_share: Annotated[
        float, typer.Option(min=0.0, max=0.99, help="Share of the total effect that a selected edge must exceed.")
    ] = 0.001,
    out: Annotated[Optional[Path], typer.Option(help="A .csv file for every row: by task and cut.")] = None,  # noqa: UP045
) -> None:
    """Score methods that find circuits on VAEs whose circuit is known."""
    from nnsight_vae.circuits import known
    from nnsight_vae.progress import progress_bar

    chosen = tuple(methods.split(",")) if methods else known.METHODS
    with progress_bar("scoring", 1000) as advance:
        result = known.benchmark(
            chosen,  # type: ignore[arg-type]  # checked there
            tuple(models.split(",")),
            range(seeds),
            pairs=pairs,
            q=q,
            min_share=min_share,
            progress=None if advance is None else lambda i, n: advance(1000 * i // n - 1000 * (i - 1) // n),
        )
    _print_table(result)
    if out is not None:
        result.to_frame().to_csv(out, index=False)
        _say(f"every row: {out}")


def _print_table(result: Benchmark) -> None:
    """A table for each model, narrow enough for a terminal of 80 columns."""
    from rich.console import Console
    from rich.table import Table

    forms = {"shd": "{:.0f}", "cut_error": "{:.0e}", "seconds": "{:.2f}"}
    for model, table in result.summary().reset_index().groupby("model", sort=False):
        columns = table.drop(columns="model")
        shown = Table(title=str(model), title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False)
        for name in map(str, columns):
            shown.add_column(name.replace("_", "\n"), justify="left" if name == "method" else "right", no_wrap=True)
        for row in columns.to_dict("records"):
            shown.add_row(
                *(x if isinstance(x, str) else _number(x, forms.get(name, "{:.3f}")) for name, x in row.items())
            )
        Console().print(shown, "")


def _number(value: float, form: str) -> str:
    return "-" if value != value else form.format(value)


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _say_step(text: str) -> None:
    _say(f"  {text} ...")


def main() -> None:
    """Run the command line."""
    # A factory beside the user is importable, as with `python -m`; a console script starts with its own folder instead.
    sys.path.insert(0, "")
    app()


if __name__ == "__main__":
    main()
