"""The nouns every experiment takes, checked at the call: a wrapped model, pairs, a readout, a data set."""

from __future__ import annotations

from typing import Any

from torch import nn

from nnsight_vae.errors import AdapterError, DataError, ReadoutError
from nnsight_vae.pairs import Pairs
from nnsight_vae.vae import VAE

_UNASKED: Any = object()


def require(vae: Any, pairs: Any = _UNASKED, readout: Any = _UNASKED, data: Any = _UNASKED) -> None:
    """Refuse what is not a `VAE`, `Pairs`, a readout or a data set, before any work.

    Args:
        vae: must be a wrapped model.
        pairs: must be `Pairs`, where given.
        readout: must have `names` and be callable, where given.
        data: must be a `Dataset`, where given.

    Raises:
        AdapterError, DataError, ReadoutError: says what was got and how to make the right thing of it.
    """
    if not isinstance(vae, VAE):
        how = "wrap it first: vae = nv.VAE(model)" if isinstance(vae, nn.Module) else "expected nv.VAE(model)"
        raise AdapterError(f"got a {type(vae).__name__} where a VAE belongs; {how}.")
    if pairs is not _UNASKED and not isinstance(pairs, Pairs):
        raise DataError(
            f"got a {type(pairs).__name__} where pairs belong; make them with nv.Pairs(base, source) or data.pairs(factor, n)."
        )
    if readout is not _UNASKED:
        require_readout(readout)
    if data is not _UNASKED:
        from nnsight_vae.datasets.base import Dataset

        if not isinstance(data, Dataset):
            raise DataError(
                f"got a {type(data).__name__} where a data set belongs, such as nv.datasets.load('pendulum')."
            )


def require_readout(readout: Any) -> None:
    """Refuse what is not a readout.

    Raises:
        ReadoutError: says what was got and what a readout is.
    """
    names = getattr(readout, "names", None)
    if isinstance(readout, type) or not callable(readout) or not isinstance(names, tuple) or not names:
        what = f"the class {readout.__name__}" if isinstance(readout, type) else f"a {type(readout).__name__}"
        raise ReadoutError(
            f"got {what} where a readout belongs: an object with names (a tuple of str) that maps reconstructions [n, ...] to "
            "[n, len(names)], such as data.readout(), nv.readouts.Region({...}) or nv.readouts.Pixels(shape)."
        )
