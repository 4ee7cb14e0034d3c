"""The VAE of scvi-tools, `scvi.model.SCVI(...).module`: gene counts in, expected counts out, covariates held fixed."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Float
from nnsight_vae.adapters.base import Adapter, library_classes
from nnsight_vae.adapters.reference import Noise
from torch import Tensor

from nnsight_vae.errors import AdapterError
from nnsight_vae.posterior import Posterior, read_posterior
from nnsight_vae.probe import random_state_kept


class SCVI(Adapter):
    """scVI: `x` are counts `[cells, genes]` (float), the reconstruction expected counts of cells of one size in one batch.

        reconstruction = library * px_scale(z, batch)      as get_normalized_expression(library_size=library, transform_batch=batch)

    What the decoder is told beside z is the same for every cell, so that effects are effects of the cell's state and not of how
    deeply or where it was sequenced; wrap once a batch to compare batches. The latent is the Gaussian's, before the softmax of
    `latent_distribution="ln"`, and the reconstruction is the mean before zero inflation.

    Args:
        batch: index of the batch, for the decoder, and for the encoder where it takes covariates.
        library: total counts of a cell.
        label: index of the label, where the dispersion depends on it.
        categorical: index in each extra categorical covariate; 0 in each where left out.
        continuous: values of the extra continuous covariates, of a model trained with some.

    Raises:
        AdapterError: the library size is not positive.
    """

    def __init__(
        self,
        batch: int = 0,
        library: float = 1e4,
        label: int = 0,
        categorical: Sequence[int] | None = None,
        continuous: Sequence[float] | None = None,
    ) -> None:
        if not library > 0:
            raise AdapterError(f"library is the total count of a cell, a positive number; got {library}.")
        self.batch, self.library, self.label = batch, library, label
        self.categorical, self.continuous = categorical, continuous

    def input_shape(self, model: Any) -> tuple[int, ...] | None:
        """The genes."""
        return (model.n_input,)

    def encode(self, model: Any, x: Float[Tensor, "n genes"]) -> Posterior:
        """The Gaussian of the cell's state; what `inference` draws beside it is left, and the random state as it was."""
        batch, covariates = self._index(x, self.batch), self._covariates(model, x)
        with random_state_kept(x.device):
            law = model.inference(x=x, batch_index=batch, **covariates)["qz"]
        return read_posterior(law, where=f"{type(model).__name__}.inference")

    def decode(self, model: Any, z: Float[Tensor, "n latent"]) -> Float[Tensor, "rows genes"]:
        """Expected counts of a cell in this state, of the adapter's library size and batch."""
        library = self._log_library(z)
        px = model.generative(
            z=model.z_encoder.z_transformation(z),
            library=library,
            size_factor=library,
            batch_index=self._index(z, self.batch),
            y=self._index(z, self.label),
            **self._covariates(model, z),
        )["px"]
        return next(getattr(px, name) for name in ("mu", "rate", "loc") if hasattr(px, name))

    def reference(self, model: Any, x: Float[Tensor, "n genes"]) -> tuple[Float[Tensor, "n genes"], str]:
        """The module's own forward on a minibatch, its noise at zero: the shares of expression, times the library size."""
        keys, covariates = import_module("scvi").REGISTRY_KEYS, self._covariates(model, x)
        tensors = {
            keys.X_KEY: x,
            keys.BATCH_KEY: self._index(x, self.batch),
            keys.LABELS_KEY: self._index(x, self.label),
            keys.CONT_COVS_KEY: covariates["cont_covs"],
            keys.CAT_COVS_KEY: covariates["cat_covs"],
            keys.SIZE_FACTOR_KEY: self._log_library(x).exp(),
        }
        with Noise():
            px = model(tensors, compute_loss=False)[1]["px"]
        scale = px.normal_mu if hasattr(px, "normal_mu") else px.scale
        return self._log_library(x).exp() * scale, "forward's px_scale with its noise at zero, times the library size"

    def _index(self, rows: Tensor, value: int) -> Tensor:
        return torch.full((len(rows), 1), value, dtype=torch.long, device=rows.device)

    def _log_library(self, rows: Tensor) -> Tensor:
        return torch.full((len(rows), 1), self.library, dtype=rows.dtype, device=rows.device).log()

    def _covariates(self, model: Any, rows: Tensor) -> dict[str, Any]:
        counts = list(model.decoder.px_decoder.n_cat_list)
        extra = len(counts) - (model.batch_representation != "embedding")
        indices = [0] * extra if self.categorical is None else list(self.categorical)
        values = None if self.continuous is None else rows.new_tensor([*self.continuous]).expand(len(rows), -1)
        return {
            "cat_covs": torch.tensor(indices, device=rows.device).expand(len(rows), -1) if indices else None,
            "cont_covs": values,
        }


def adapter_for(model: Any) -> Adapter | None:
    """The adapter for scVI's module and its descendants (batch 0, 10,000 counts a cell); None for other modules of scvi's."""
    parts = all(hasattr(model, name) for name in ("z_encoder", "decoder", "inference", "generative"))
    return SCVI() if "VAE" in library_classes(model, "scvi") and parts else None
