"""Small pictures of what units do, for the nodes of an interactive page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from nnsight_vae.arguments import require
from nnsight_vae.errors import CircuitError
from nnsight_vae.runs import CleanRun, clean_run
from nnsight_vae.sites import Site
from nnsight_vae.style import LOWERS, RAISES
from nnsight_vae.vae import VAE

Picture = Float[np.ndarray, "h w 3"]

_LARGEST = 64  # pixels
_STEPS = (-2.0, -1.0, 0.0, 1.0, 2.0)  # values of a traversed latent
_DEAD = 0.01  # of the largest activation of the site: a unit below shows nothing


def thumbnails(vae: VAE, x: Float[Tensor, "n *image"], *, nodes: Iterable[str] | None = None) -> dict[str, Picture]:
    """A small picture for every unit of the model, by node id, for `export(circuit, "page.html", thumbnails=...)`.

    - a channel with a grid of positions: its mean activation over x, blue where positive and orange where negative, on the
      channel's own scale; blank where it does next to nothing beside the others of its site
    - a latent `latent.z[k]` or `latent.mu[k]`: decoded images while it goes from -2 to 2, the other latents as for x[0]
    - any other unit: the inputs of x in which it is lowest and highest, side by side
    - `input[c]`, `output[c]`: that channel of x[0] and of its reconstruction; `factor` and `readout` (a page shows them at the
      nodes of those kinds): the whole images

    Args:
        vae: the model.
        x: inputs; a few dozen are plenty. Pictures of images need `[n, c, h, w]`; other inputs have activation maps only.
        nodes: ids to make pictures for, e.g. the circuit; None: all units of all sites.

    Returns: node id -> image in [0, 1], at most 64 pixels high.

    Raises:
        AdapterError: the model is not wrapped.
        DataError: x is not a finite float batch that this model can run.
        CircuitError: x is empty.

    Example:
        >>> from nnsight_vae.models import MLPVAE
        >>> vae = VAE(MLPVAE(image_shape=(1, 8, 8), latent=2, hidden=(4,)))
        >>> pictures = thumbnails(vae, torch.rand(3, 1, 8, 8), nodes=["latent.z[0]", "input[0]"])
        >>> {name: picture.shape for name, picture in pictures.items()}
        {'factor': (8, 8, 3), 'readout': (8, 8, 3), 'input[0]': (8, 8, 3), 'latent.z[0]': (8, 40, 3)}
    """
    require(vae)
    x = vae.checked(x)
    if not len(x):
        raise CircuitError("x holds no inputs; thumbnails need at least one.")
    layout = vae.layout(x)
    wanted = None if nodes is None else set(nodes)
    sites = [
        site for site in layout.sites.values() if wanted is None or any(str(unit) in wanted for unit in site.units)
    ]
    names = {site.name for site in sites} | {"output", "latent.z"}
    with torch.no_grad():
        run = clean_run(vae, x, paths=[layout.paths[name] for name in names])
        found = dict(_ends(run))
        for site in sites:
            for unit, picture in _of_site(run, site, wanted):
                found[unit] = picture
    return found


def _ends(run: CleanRun) -> Iterator[tuple[str, Picture]]:
    for name, images in (("factor", run.x), ("readout", run.at("output"))):
        if images.ndim == 4:
            yield name, _picture(_scaled(images[:1]))


def _of_site(run: CleanRun, site: Site, wanted: set[str] | None) -> Iterator[tuple[str, Picture]]:
    """The pictures of those units of a site that are wanted."""
    activation = run.at(site.name).detach().float().movedim(site.axis, 1)
    mean = activation.mean(dim=0)
    largest = float(mean.abs().max())
    for unit in site.units:
        if wanted is not None and str(unit) not in wanted:
            continue
        if site.stage in ("input", "output"):
            if activation.ndim == 4:
                yield str(unit), _picture(_scaled(activation[:1])[:, unit.index, None])
        elif site.name in ("latent.z", "latent.mu"):
            if run.at("output").ndim == 4:
                yield str(unit), _traversal(run, site, unit.index)
        elif len(site.grid) == 2:
            yield str(unit), _map(mean[unit.index], largest)
        elif run.x.ndim == 4:
            level = (
                activation[:, unit.index].flatten(1).mean(dim=1) if activation.ndim > 2 else activation[:, unit.index]
            )
            yield str(unit), _picture(_scaled(run.x)[[int(level.argmin()), int(level.argmax())]])


def _traversal(run: CleanRun, site: Site, unit: int) -> Picture:
    z = run.at("latent.z")[:1].repeat_interleave(len(_STEPS), dim=0)
    z.movedim(site.axis, 1)[:, unit] = torch.tensor(_STEPS, dtype=z.dtype, device=z.device).reshape(
        -1, *([1] * len(site.grid))
    )
    return _picture(_scaled(run.vae.decode(z)))


def _map(mean: Float[Tensor, "h w"], largest: float) -> Picture:
    """Blue where positive, orange where negative, over a pale ground."""
    values = _shrunk(mean[None, None])[0, 0].cpu().numpy()
    own = float(np.abs(values).max())
    depth = (np.abs(values) / own if own > _DEAD * largest and own > 0 else np.zeros_like(values))[..., None]
    colours = np.where((values > 0)[..., None], _rgb(RAISES), _rgb(LOWERS))
    return np.asarray((1 - depth) * _rgb("#fbfbfb") + depth * colours)


def _picture(images: Float[Tensor, "n c h w"]) -> Picture:
    """Images side by side, in grey unless there are three channels."""
    strip = torch.cat(list(_shrunk(images)), dim=-1)
    strip = strip if len(strip) == 3 else strip.mean(dim=0, keepdim=True).expand(3, -1, -1)
    return strip.movedim(0, -1).cpu().numpy()


def _scaled(images: Tensor) -> Tensor:
    """As they are where they lie in [0, 1], else from their smallest to their largest value."""
    images = images.detach().float()
    low, high = float(images.min()), float(images.max())
    if low >= 0 and high <= 1:
        return images
    return (images - low) / ((high - low) or 1.0)


def _shrunk(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    height, width = images.shape[-2:]
    scale = min(1.0, _LARGEST / max(height, width))
    return adaptive_avg_pool2d(images, (max(round(height * scale), 1), max(round(width * scale), 1)))


def _rgb(colour: str) -> Float[np.ndarray, "3"]:
    return np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
