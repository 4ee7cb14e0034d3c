"""The raw module behind a site, an envoy or a name: what Captum takes for a layer."""

from __future__ import annotations

from typing import TypeAlias

from torch import nn

from nnsight_vae._nnsight import Envoy
from nnsight_vae.arguments import require
from nnsight_vae.errors import SiteError
from nnsight_vae.layout import site_name
from nnsight_vae.sites import Site
from nnsight_vae.vae import VAE

Layer: TypeAlias = str | Site | Envoy | nn.Module


def captum_layer(vae: VAE, site: Layer) -> nn.Module:
    """The raw module of a site, for Captum's layer and neuron methods.

    Captum takes anything that is not an `nn.Module`, an nnsight envoy too, for a list of layers, and then fails far from the
    cause or attributes to the envoy's children. This unwraps it.

    Args:
        vae: the model.
        site: name of a site (`"encoder.4"`, `"latent.mu"`), a `Site`, an envoy (`vae.encoder[4]`), or a module of the model.

    Returns: the module, the user's own object.

    Raises:
        SiteError: it is no site of this VAE (it fires twice, or not at all, or returns no tensor), or names single units.

    Example:
        >>> import nnsight_vae as nv
        >>> from nnsight_vae.models import MLPVAE
        >>> vae = nv.VAE(MLPVAE(image_shape=(1, 8, 8), latent=3))
        >>> captum_layer(vae, "fc_mu") is vae.module.fc_mu is captum_layer(vae, vae.fc_mu)
        True
    """
    name = layer_name(vae, site)
    return vae._module.get_submodule(vae.layout().paths[name])


def layer_name(vae: VAE, site: Layer) -> str:
    """The name of the site that a site, envoy or module stands for.

    Raises:
        SiteError: it is no whole site of this VAE.
    """
    require(vae)
    module = site._module if isinstance(site, Envoy) else site
    if isinstance(module, nn.Module):
        firings, paths = vae.layout().firings, vae.layout().paths
        for name, path in paths.items():
            if firings[path].module is module:
                return name
        for path, part in vae._module.named_modules():
            if part is module:
                return vae.sites[site_name(path)].name  # refused there, with the reason
        raise SiteError(f"this {type(module).__name__} is no module of the VAE.")
    selection = vae.sites.select(module)
    if selection.indices is not None or selection.position is not None:
        raise SiteError(f"{site!r} names single units; a layer is a whole site: {selection.site!r}.")
    return selection.site
