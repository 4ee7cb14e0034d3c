"""Short training runs on images of one bright spot, and ways to stop them."""

from __future__ import annotations

import torch

from nnsight_vae.models import training
from nnsight_vae.models.training import train

STEPS = 23
ARGUMENTS = {"latent": 3, "hidden": (16,)}


def blobs(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """8x8 images of one bright spot at a real-valued position, with the position."""
    centre = torch.rand(n, 2, generator=torch.Generator().manual_seed(seed)) * 5 + 1
    grid = torch.arange(8.0)
    distance = (grid[None, :, None] - centre[:, :1, None]) ** 2 + (grid[None, None, :] - centre[:, 1:, None]) ** 2
    return torch.exp(-distance / 2)[:, None], centre


IMAGES, CENTRES = blobs(64)


def run(out=None, **changes):
    options = {
        "architecture": "MLPVAE",
        "arguments": ARGUMENTS,
        "steps": STEPS,
        "batch_size": 8,
        "checkpoint_every": 5,
        "out": out,
        "progress": False,
    } | changes
    return train(options.pop("images", IMAGES), **options)


def assert_same(one, two):
    assert one.config["history"] == two.config["history"]
    for name, tensor in one.module.state_dict().items():
        assert torch.equal(tensor, two.module.state_dict()[name]), name


def stop_at(monkeypatch, step: int, how) -> None:
    """Call `how` in the middle of optimiser step number `step`."""
    original = training._Task.update

    def update(task, state):
        if state.step == step:
            how(state)
        original(task, state)

    monkeypatch.setattr(training._Task, "update", update)


def die(_):
    raise RuntimeError("killed")
