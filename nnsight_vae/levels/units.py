"""Which units an experiment is about, from the keys a user gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch

from nnsight_vae.errors import InterventionError, SiteError
from nnsight_vae.sites import Key, Selection
from nnsight_vae.vae import VAE

Per = Literal["unit", "site", "position"]


def experiments(
    vae: VAE, keys: Sequence[Key | tuple[Key, ...]] | Key, per: Per = "unit"
) -> dict[str, tuple[Selection, ...]]:
    """What is intervened on together, one experiment after the other, from the keys a user gives.

    Args:
        vae: the model.
        keys: sites, units, slices, positions. A tuple of keys inside the list is one joint set, whatever `per`.
        per: `"unit"`: every unit of every key alone; `"site"`: each key as a whole; `"position"`: each position of each key's
            site, its units together (a site without positions as a whole).

    Returns: name of the experiment, as shown in `Effects.units` (`"encoder.4[7]"`, `"a[0] + b[1:3]"`) -> what it acts on; in the
        order given, once each.

    Raises:
        SiteError: a key names no unit of this VAE, or there are no keys.
        InterventionError: an unknown `per`.

    Example:
        >>> import nnsight_vae as nv
        >>> from nnsight_vae.models import MLPVAE
        >>> vae = nv.VAE(MLPVAE(image_shape=(1, 8, 8), latent=3))
        >>> list(experiments(vae, ["latent.z[0:2]", ("latent.mu[0]", "latent.mu[2]")]))
        ['latent.z[0]', 'latent.z[1]', 'latent.mu[0] + latent.mu[2]']
    """
    if per not in get_args(Per):
        raise InterventionError(f"per must be 'unit', 'site' or 'position', got {per!r}.")
    if isinstance(keys, str) or not isinstance(keys, Sequence):
        keys = [keys]
    named: dict[str, tuple[Selection, ...]] = {}
    for key in keys:
        if isinstance(key, tuple):
            joint = tuple(vae.sites.select(each) for each in key)
            named[" + ".join(map(str, joint))] = joint
        else:
            named |= {str(part): (part,) for part in _parts(vae, vae.sites.select(key), per)}
    if not all(named.values()) or not named:
        raise SiteError("no sites given, nor units; name at least one, e.g. ['encoder.4', 'latent.z[3]'].")
    return named


def _parts(vae: VAE, selection: Selection, per: Per) -> list[Selection]:
    if per == "unit":
        return [replace(selection, indices=(unit.index,)) for unit in vae.sites.units(selection)]
    if per == "position" and selection.position is None:
        return [replace(selection, position=position or None) for position in vae.sites[selection.site].positions]
    return [selection]


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
