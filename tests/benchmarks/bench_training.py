"""Training steps against a loop by hand and, where it is installed, pythae's trainer. Run: python tests/benchmarks/bench_training.py

The same network, images, batches of 64, Adam and Bernoulli loss, an epoch each in turns; processor seconds of one thread.
Of each rival: the median of the rounds' ratios and their range, and how busy the machine was, which moves them.
"""

from __future__ import annotations

import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from nnsight_vae.models import ConvVAE, train
from nnsight_vae.models.objectives import Objective

IMAGES, BATCH, ROUNDS = 1280, 64, 9


def seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def ours(images: Tensor) -> None:
    with tempfile.TemporaryDirectory() as folder:
        train(images, objective=Objective(), steps=IMAGES // BATCH, batch_size=BATCH, out=folder, progress=False)


def by_hand(images: Tensor) -> None:
    model = ConvVAE(image_shape=tuple(images.shape[1:]))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(IMAGES // BATCH):
        x = images[torch.randint(len(images), (BATCH,))].float() / 255
        mu, logvar = model.encode(x)
        z = mu + (0.5 * logvar).exp() * torch.randn_like(mu)
        fit = nn.functional.binary_cross_entropy(model.decode(z), x, reduction="sum") / BATCH
        kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(1).mean()
        optimizer.zero_grad()
        (fit + kl).backward()
        optimizer.step()


def pythae(images: Tensor) -> Callable[[], None] | None:
    """One epoch of pythae's trainer on the same network; None where pythae is not installed."""
    try:
        from pythae.data.datasets import BaseDataset
        from pythae.models import VAE, VAEConfig
        from pythae.models.base.base_utils import ModelOutput
        from pythae.models.nn import BaseDecoder, BaseEncoder
        from pythae.trainers import BaseTrainer, BaseTrainerConfig
    except ImportError:
        return None
    network = ConvVAE(image_shape=tuple(images.shape[1:]))

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> ModelOutput:
            mu, logvar = self.network.encode(x)
            return ModelOutput(embedding=mu, log_covariance=logvar)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = network.decoder

        def forward(self, z: Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=self.decoder(z))

    config = VAEConfig(input_dim=tuple(images.shape[1:]), latent_dim=8, reconstruction_loss="bce")
    model = VAE(config, encoder=Encoder(), decoder=Decoder())
    data = BaseDataset(images.float() / 255, torch.zeros(len(images)))

    def epoch() -> None:
        with tempfile.TemporaryDirectory() as folder:
            settings = BaseTrainerConfig(
                output_dir=folder, num_epochs=1, learning_rate=1e-3, per_device_train_batch_size=BATCH, no_cuda=True
            )
            BaseTrainer(model=model, train_dataset=data, training_config=settings).train()

    return epoch


def main() -> None:
    """Print the ratios: how many times faster than each rival."""
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)  # pythae tells of every epoch
    images = torch.randint(0, 256, (IMAGES, 3, 64, 64), dtype=torch.uint8)
    rivals: dict[str, Callable[[], None] | None] = {
        "a loop by hand": lambda: by_hand(images),
        "pythae's trainer": pythae(images),
    }
    for name, rival in rivals.items():
        if rival is None:
            print(f"{name}: not installed")
            continue
        ours(images), rival()
        times = [(seconds(lambda: ours(images)), seconds(rival)) for _ in range(ROUNDS)]
        mine, theirs = (statistics.median(column) for column in zip(*times, strict=True))
        ratios = sorted(b / a for a, b in times)
        print(
            f"{name}: {statistics.median(ratios):.2f}x its speed, {ratios[0]:.2f} to {ratios[-1]:.2f} over {ROUNDS} rounds "
            f"({IMAGES / mine:.0f} and {IMAGES / theirs:.0f} images/s; load {os.getloadavg()[0]:.1f})"
        )


if __name__ == "__main__":
    main()
