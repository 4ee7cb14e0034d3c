"""The small network behind `readouts.Factors`: its shape, its training loop and its score. Knows only tensors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from nnsight_vae.progress import progress_bar

Progress = Callable[[int, int], None]

_SMALLEST_CONV = 16  # below this many pixels a side, halving the image loses more than weight sharing gains
_BATCH = 64  # images per optimiser step
_PEAK_RATE = 3e-3  # of AdamW's one-cycle schedule
_REPORT_EVERY = 50  # steps between progress reports
_SCORE_CHUNK = 512  # images per forward when nothing is trained
_MAX_BLUR = 3 / 64  # widest training blur (sd), as a share of the image side
_MAX_NOISE = 0.05  # widest training noise (sd), in intensity


def build_regressor(image_shape: tuple[int, ...], n_targets: int) -> nn.Sequential:
    """An untrained regressor from inputs of `image_shape` to `n_targets` numbers, ending in a Linear layer.

    Images of 16 pixels a side or more get stride-2 convolutions down to about 4 x 4; the rest a two-layer MLP. SiLU
    keeps the readout's gradients smooth, for attribution through it.
    """
    if len(image_shape) != 3 or min(image_shape[1:]) < _SMALLEST_CONV:
        size = math.prod(image_shape)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(size, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, n_targets)
        )
    channels, height, width = image_shape
    layers: list[nn.Module] = [nn.Conv2d(channels, 16, 5, stride=2, padding=2), nn.SiLU()]
    height, width, depth = -(-height // 2), -(-width // 2), 16
    while min(height, width) > 4:
        layers += [nn.Conv2d(depth, 32, 3, stride=2, padding=1), nn.SiLU()]
        height, width, depth = -(-height // 2), -(-width // 2), 32
    layers += [nn.Flatten(), nn.Linear(depth * height * width, 64), nn.SiLU(), nn.Linear(64, n_targets)]
    return nn.Sequential(*layers)


def train_regressor(
    images: Shaped[Tensor, "n ..."],
    targets: Float[Tensor, "n f"],
    *,
    n_outputs: int | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.mse_loss,
    seed: int,
    steps: int,
    augment: bool,
    progress: Progress | None = None,
) -> nn.Sequential:
    """A network trained on targets, in eval mode.

    Args:
        images: float in [0, 1], or uint8 (scaled by 1/255 batch by batch, so large sets stay small in memory).
        targets: one row per image; for the squared error zero mean and unit variance per column.
        n_outputs: of the network; None: one a target.
        loss: of outputs and targets.
        seed: fixes weights, order and augmentation; the global random state is left as it was.
        steps: optimiser steps, each on the next 64 images of a shuffled pass.
        augment: blur and noise half of each batch, as a VAE's reconstructions are blurred and noisy.
        progress: called with (steps done, steps in all), now and then; None: a bar on an interactive terminal.
    """
    with torch.random.fork_rng(devices=[]):  # layers can only draw their initial weights from the global generator
        torch.manual_seed(seed)
        network = build_regressor(tuple(images.shape[1:]), n_outputs or targets.shape[1])
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=_PEAK_RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=_PEAK_RATE, total_steps=steps)
    with progress_bar("learning to read the factors", steps, None if progress is None else False) as advance:
        for step, rows in enumerate(itertools.islice(_shuffled_batches(len(images), generator), steps), start=1):
            batch = unit_range(images[rows])
            if augment:
                batch = degrade(batch, generator)
            optimizer.zero_grad()
            loss(network(batch), targets[rows]).backward()
            optimizer.step()
            schedule.step()
            if advance is not None:
                advance(1)
            if progress is not None and (step % _REPORT_EVERY == 0 or step == steps):
                progress(step, steps)
    return network.eval().requires_grad_(False)


def _shuffled_batches(n: int, generator: torch.Generator) -> Iterator[Tensor]:
    while True:
        yield from torch.randperm(n, generator=generator).split(_BATCH)


def restore_regressor(image_shape: tuple[int, ...], n_targets: int, weights: dict[str, Tensor]) -> nn.Sequential:
    """The regressor with these weights. Built without storage first, so that no random number is drawn.

    Raises:
        RuntimeError: if the weights are not those of such a regressor (torch's own message).
    """
    with torch.device("meta"):
        network = build_regressor(image_shape, n_targets)
    network.load_state_dict(weights, assign=True)
    return network


def degrade(images: Float[Tensor, " n *image"], generator: torch.Generator) -> Float[Tensor, " n *image"]:
    """The batch with its first half blurred (image batches only) and noised, by random amounts drawn per call."""
    half = len(images) // 2
    blur, noise = torch.rand(2, generator=generator).tolist()
    worse = images[:half]
    if worse.ndim == 4:
        worse = gaussian_blur(worse, blur * _MAX_BLUR * min(worse.shape[-2:]))
    worse = worse + noise * _MAX_NOISE * torch.randn(worse.shape, generator=generator)
    return torch.cat([worse, images[half:]])


def gaussian_blur(images: Float[Tensor, "n c h w"], sd: float) -> Float[Tensor, "n c h w"]:
    """Images convolved with a Gaussian of `sd` pixels, edges replicated. A blur below a tenth of a pixel is none."""
    if sd < 0.1:
        return images
    radius = min(math.ceil(3 * sd), min(images.shape[-2:]) - 1)
    offsets = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-0.5 * (offsets / sd) ** 2)
    kernel = kernel / kernel.sum()
    n, c, h, w = images.shape
    flat = nn.functional.pad(images.reshape(n * c, 1, h, w), (radius,) * 4, mode="replicate")
    flat = nn.functional.conv2d(flat, kernel.view(1, 1, -1, 1))
    return nn.functional.conv2d(flat, kernel.view(1, 1, 1, -1)).reshape(n, c, h, w)


def predict(network: nn.Module, images: Shaped[Tensor, "n ..."]) -> Float[Tensor, "n f"]:
    """The network's outputs for all images, in chunks, without gradients."""
    with torch.no_grad():
        return torch.cat([network(unit_range(chunk)) for chunk in images.split(_SCORE_CHUNK)])


def unit_range(images: Shaped[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
    """uint8 images scaled to [0, 1]; float images as they are."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def r_squared(predicted: Float[Tensor, "n f"], true: Float[Tensor, "n f"]) -> list[float | None]:
    """1 - residual sum of squares / total sum of squares, per column; None where the true values are constant."""
    predicted, true = predicted.double(), true.double()
    residual = ((true - predicted) ** 2).sum(0)
    total = ((true - true.mean(0)) ** 2).sum(0)
    return [1 - float(r / t) if t > 0 else None for r, t in zip(residual, total, strict=True)]


def line_of(predicted: Float[Tensor, "n f"], true: Float[Tensor, "n f"]) -> list[tuple[float, float] | None]:
    """Slope and intercept of the regression of each predicted column on the true one; None where the true values are constant."""
    predicted, true = predicted.double(), true.double()
    centred = true - true.mean(0)
    spread, shared = (centred**2).sum(0), (centred * predicted).sum(0)
    return [
        (float(c / s), float(p - c / s * t)) if s > 0 else None
        for c, s, p, t in zip(shared, spread, predicted.mean(0), true.mean(0), strict=True)
    ]
