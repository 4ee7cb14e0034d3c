"""All metrics of codes against factors of a model at once: beside unrelated codes, and on independent factors where there are any."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nnsight_vae.arguments import require
from nnsight_vae.datasets.base import Dataset
from nnsight_vae.engine import activations
from nnsight_vae.errors import DataError
from nnsight_vae.metrics.correlated import mcc
from nnsight_vae.metrics.fronts import activity
from nnsight_vae.metrics.information import mig, modularity
from nnsight_vae.metrics.latent_activity import ACTIVE
from nnsight_vae.metrics.mec import infomec
from nnsight_vae.metrics.predictive import dci, explicitness, sap
from nnsight_vae.metrics.robustness import irs, unconfoundedness
from nnsight_vae.metrics.tables import FactorScore
from nnsight_vae.progress import progress_bar
from nnsight_vae.vae import VAE

if TYPE_CHECKING:
    import pandas as pd

METRICS: dict[str, Callable[..., FactorScore]] = {
    "mig": mig,
    "modularity": modularity,
    "sap": sap,
    "dci": dci,
    "explicitness": explicitness,
    "irs": irs,
    "unconfoundedness": unconfoundedness,
    "infomec": infomec,
    "mcc": mcc,
}


@dataclass(frozen=True, repr=False)
class Disentanglement:
    """Metrics of one model on one data set.

    Attributes:
        scores: (metric, "observational" or "independent") -> score.
        latents: the latents that were compared; inactive ones are left out.
        n_latents: how many there are in all.
        n: number of images.
    """

    scores: dict[tuple[str, str], FactorScore]
    latents: tuple[int, ...]
    n_latents: int
    n: int

    def to_frame(self) -> pd.DataFrame:
        """One row per metric and sampling: metric, factors, value, null, null_high, then the parts, and note."""
        import pandas as pd

        frames = [score.to_frame().assign(metric=name, factors=how) for (name, how), score in self.scores.items()]
        frame = pd.concat(frames, ignore_index=True)
        first = ["metric", "factors", "value", "null", "null_high"]
        rest = [column for column in frame.columns if column not in (*first, "note")]
        return frame[[*first, *rest, "note"]]

    def __str__(self) -> str:
        lines = [f"{len(self.latents)} active of {self.n_latents} latents, {self.n} images"]
        width = max(len(name) for name, _ in self.scores)
        lines += [f"{name:<{width}}  {how:<13}  {score}" for (name, how), score in self.scores.items()]
        return "\n".join(lines)

    __repr__ = __str__


def disentanglement(
    vae: VAE,
    data: Dataset,
    *,
    n: int = 2000,
    metrics: Sequence[str] = ("mig", "sap", "dci", "modularity", "explicitness", "irs", "mcc"),
    seed: int = 0,
    progress: bool | None = None,
    **options: Any,
) -> Disentanglement:
    """Metrics of posterior means against a data set's factors, on observational and, where they can be drawn, independent factors.

    Correlated factors raise some metrics and lower others whatever the model does; on independent factors (`sample_independent`)
    they tell of the model. Latents without information (less than .01 nats) are left out.

    Args:
        vae: the model.
        data: images with factors.
        n: number of images of each kind.
        metrics: of `METRICS`: mig, modularity, sap, dci, explicitness, irs, unconfoundedness, infomec, mcc.
        seed: of images and metrics.
        progress: show a bar; by default on an interactive terminal.
        options: passed on to every metric, such as `n_null`.

    Returns: every score beside that of unrelated codes.

    Raises:
        DataError: an unknown metric, no active latent, spatial latents, or metrics' own reasons.

    Example:
        >>> import nnsight_vae as nv
        >>> vae, data = nv.load("pendulum-labelled-vae"), nv.datasets.load("pendulum")
        >>> table = disentanglement(vae, data, n=200, metrics=["mcc"])
        >>> table.scores["mcc", "independent"].value > 0.9
        True
    """
    require(vae)
    if not isinstance(data, Dataset):
        raise DataError(f"got a {type(data).__name__} where a data set belongs, such as nv.datasets.load('pendulum').")
    unknown = [name for name in metrics if name not in METRICS]
    if unknown or not metrics:
        raise DataError(f"metrics={list(metrics)}: expected some of {', '.join(METRICS)}.")
    batches = {"observational": data.sample(n, seed)}
    if hasattr(data, "sample_independent"):
        batches["independent"] = data.sample_independent(n, seed)
    scores: dict[tuple[str, str], FactorScore] = {}
    informed = activity(vae, batches["observational"].images).kl.values
    latents = [k for k, nats in enumerate(informed) if nats is not None and nats > ACTIVE]
    codes = {
        how: activations(vae, b.images, ["latent.mu"])["latent.mu"].double().cpu().numpy() for how, b in batches.items()
    }
    if any(array.ndim != 2 for array in codes.values()):
        raise DataError(
            "spatial latents have no one number an image; give codes of your own to the metrics, such as their mean."
        )
    if not latents:
        raise DataError("no latent is active, so there are no codes to compare with factors.")
    with progress_bar("metrics", len(metrics) * len(batches), progress) as advance:
        for name in metrics:
            for how, batch in batches.items():
                scores[name, how] = METRICS[name](
                    codes[how][:, list(latents)], batch.factors.double().numpy(), seed=seed, **options
                )
                if advance is not None:
                    advance(1)
    return Disentanglement(scores, tuple(latents), next(iter(codes.values())).shape[1], n)
