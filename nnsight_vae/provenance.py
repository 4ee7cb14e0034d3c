"""Provenance: where a result comes from, as plain JSON data kept with it."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch import Tensor

from nnsight_vae.pairs import Pairs
from nnsight_vae.reading import described, unit_of
from nnsight_vae.vae import VAE


def provenance(vae: VAE, pairs: Pairs | None = None, readout: object | None = None, **details: Any) -> dict[str, Any]:
    """Model fingerprint, pairs, readout and versions, with any further details of the call.

    Args:
        vae: the model; its weights are hashed.
        pairs: the pairs the result is over.
        readout: the readout the result is in units of; kept as its own repr says it (which regions, how reliable), else by class.
        details: anything else worth keeping, as JSON data.
    """
    record: dict[str, Any] = {
        "model": type(vae.module).__name__,
        "adapter": type(vae.adapter).__name__,
        "fingerprint": vae.fingerprint,
        "versions": {name: _version(name) for name in ("nnsight-vae", "nnsight", "torch")},
    }
    if vae.given:
        record["given"] = [one[0].tolist() for one in vae.given]
    if pairs is not None:
        record["pairs"] = pairs_record(pairs)
    if readout is not None:
        record["readout"] = described(readout)
        record |= {"unit": unit} if (unit := unit_of(readout)) else {}
    return record | details


def pairs_record(pairs: Pairs) -> dict[str, Any]:
    """How many pairs of what, where they are from, and how well they match where they were matched."""
    matched = {} if pairs.match is None else {"match": dict(pairs.match)}
    return (
        pairs.record
        | {
            "n": len(pairs),
            "factor": pairs.factor,
            "propagate": pairs.propagate,
            "noise": noise_record(pairs.eps),
        }
        | matched
    )


def noise_record(eps: Tensor | None) -> str:
    """What the latent of every run is drawn with."""
    return "posterior mean" if eps is None else "shared eps"


@cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
