"""Which units an experiment is about, from the keys a user gives."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nnsight_vae.errors import SiteError
from nnsight_vae.sites import Key, Unit
from nnsight_vae.vae import VAE


def default_sites(vae: VAE) -> list[str]:
    """The sites of every linear and convolutional layer, and `latent.z`.

    Normalisation (in eval mode) and activations act on each unit alone, so patching a unit before or after them is the same
    experiment; the layers' own outputs stand for the whole chain. A linear layer whose neurons are then folded into channels is
    represented by those channels. The layer that makes the reconstruction is left out: its units are the image, not the model.
    """
    chain = [site for site in vae.sites.values() if site.kind != "container"]
    found = []
    for i, site in enumerate(chain):
        if site.kind in ("conv", "linear"):
            following = next((s for s in chain[i + 1 :] if s.kind not in ("activation", "norm")), site)
            folded = site.kind == "linear" and following.kind == "reshape" and len(following.shape) > 1
            found.append(following.name if folded else site.name)
        elif site.name == "latent.z":
            found.append(site.name)
    image = torch.Size(vae.sites["output"].shape).numel()
    if vae.sites[found[-1]].stage == "decoder" and torch.Size(vae.sites[found[-1]].shape).numel() == image:
        found.pop()
    return found


def selected_units(vae: VAE, keys: Sequence[Key]) -> list[Unit]:
    """Every unit that some keys name, in the order given, once each.

    Raises:
        SiteError: a key names no unit of this VAE, or there are no keys.
    """
    if isinstance(keys, str) or not isinstance(keys, Sequence):
        keys = [keys]
    units: dict[Unit, None] = {}
    for key in keys:
        units.update(dict.fromkeys(vae.sites.units(vae.sites.select(key))))
    if not units:
        raise SiteError("no sites given; name at least one, e.g. sites=['encoder.4', 'latent.z'].")
    return list(units)
