"""The layouts of a VAE, one an input shape: probed when a shape is first seen, guessed where none was shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nnsight_vae.errors import DataError
from nnsight_vae.hold import Hold
from nnsight_vae.layout import Layout, read_layout
from nnsight_vae.probe import candidate_inputs
from nnsight_vae.wrapped import Wrapped

if TYPE_CHECKING:
    from nnsight_vae._nnsight import VAEInterleaver


class Layouts:
    """What probing found, for every input shape that a VAE has seen.

    Args:
        root: the wrapper module.
        hold: under which it is run.
        interleaver: told which values later code writes into.

    Attributes:
        shape: of the inputs seen last, without the batch axis; None: none was seen, and none could be guessed.
    """

    def __init__(self, root: Wrapped, hold: Hold, interleaver: VAEInterleaver) -> None:
        self._root, self._hold, self._interleaver = root, hold, interleaver
        self._found: dict[tuple[int, ...], Layout] = {}
        self.shape: tuple[int, ...] | None = None

    def of(self, x: Tensor) -> Layout:
        """The layout for inputs of x's shape, which is now the one seen last.

        Raises:
            DataError: the model cannot run them.
        """
        shape = tuple(x.shape[1:])
        if shape not in self._found:
            with self._hold.run(self._root, self._interleaver):
                layout = read_layout(self._root, x, known=self._found)
            self._found[shape] = layout
            self._interleaver.overwritten |= {f"vae.{f.path}.output" for f in layout.firings.values() if f.overwritten}
        self.shape = shape
        return self._found[shape]

    @property
    def last(self) -> Layout:
        """The layout for the shape seen last.

        Raises:
            DataError: there is none.
        """
        if self.shape is None:
            raise DataError(
                "the sites of this VAE are not known yet: its input shape could not be inferred. Run it once (vae.encode(x)), "
                "or wrap with nv.VAE(module, example=x)."
            )
        return self._found[self.shape]

    @property
    def latents(self) -> list[tuple[int, ...]]:
        """Shapes of the latent that are known, without the batch axis, each once."""
        return list(dict.fromkeys(layout.sites["latent.z"].shape for layout in self._found.values()))

    def guess(self) -> None:
        """Try likely input shapes; an autoencoder is recognised by giving its input's shape back."""
        model = self._root.model
        for x in candidate_inputs(model, self._root.adapter.input_shape(model)):
            returned = self._returned(x)
            # A model that flattens its input itself runs on flat vectors too; it gives back the shape it is meant for.
            if returned is not None and returned != x.shape[1:] and x[0].numel() == torch.Size(returned).numel():
                x = x.reshape(len(x), *returned)
                returned = self._returned(x)
            if returned == x.shape[1:]:
                self._found = {tuple(x.shape[1:]): self.of(x)}
                return
        self._found.clear()
        self.shape = None

    def _returned(self, x: Tensor) -> tuple[int, ...] | None:
        """The shape of one reconstruction of `x`; None where the model cannot run it."""
        try:
            return self.of(x).sites["output"].shape
        except DataError:
            return None
