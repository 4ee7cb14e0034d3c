"""One analysis under way: what was asked for, and what its steps hand on to one another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nnsight_vae.causal.mapping import FactorMap
from nnsight_vae.datasets.base import Dataset
from nnsight_vae.errors import DataError
from nnsight_vae.pairs import Pairs
from nnsight_vae.report.folder import Folder
from nnsight_vae.report.summary import Summary
from nnsight_vae.vae import VAE

if TYPE_CHECKING:
    import networkx as nx


@dataclass(frozen=True)
class Settings:
    """How much to run, and what counts.

    Attributes:
        factors: the factors whose units and circuit are sought; None: every factor the dataset's readout can read. Latents and
            graphs are always about all of them.
        pairs: pairs per factor.
        images: images for latent-level results.
        q: false discovery rate of the units that carry a factor.
        min_effect: smallest effect of a unit that counts, in factor standard deviations.
        seed: of everything random.
    """

    factors: tuple[str, ...] | None = None
    pairs: int = 64
    images: int = 256
    q: float = 0.05
    min_effect: float = 0.05
    seed: int = 0


class Run:
    """The model and the data of an analysis, where its results go, and what later steps need from earlier ones.

    Attributes:
        readout: of all factors that can be read.
        factors: those whose units and circuits are sought.
        complete: whether every factor of the data can be read.
        intervenes: whether the data have an SCM.
        mapping: which latents carry which factor.
        model_graph: the model's own graph over the factors.

    Raises:
        DataError: unknown factors, images the model cannot run.
        ReadoutError: no factor of the dataset can be read reliably.
    """

    mapping: FactorMap
    model_graph: nx.DiGraph

    def __init__(self, vae: VAE, data: Dataset, folder: Folder, settings: Settings, name: str) -> None:
        self.vae, self.data, self.folder, self.settings, self.name = vae, data, folder, settings, name
        if unknown := [f for f in settings.factors or () if f not in data.factors]:
            raise DataError(f"{data.name} has no factors {', '.join(unknown)}; it has {', '.join(data.factors)}.")
        images = min(settings.images, data.n_images or settings.images)
        self.batch = data.sample(images, seed=settings.seed)
        vae.checked(self.batch.images[:1])
        self.readout = data.readout()
        if settings.factors is not None:
            data.readout(settings.factors)  # refuses a factor that cannot be read
        self.factors = settings.factors or self.readout.names
        self.complete = set(self.readout.names) == set(data.factors)
        self.intervenes = type(data).do is not Dataset.do
        self.summary = Summary(folder.path)
        self._pairs: dict[str, Pairs] = {}

    @property
    def sections(self) -> dict[str, Any]:
        """What the summary says so far, section by section."""
        return self.summary.sections

    def pairs(self, factor: str) -> Pairs:
        """Pairs of one factor, made once."""
        if factor not in self._pairs:
            self._pairs[factor] = self.data.pairs(factor, self.settings.pairs, seed=self.settings.seed)
        return self._pairs[factor]
