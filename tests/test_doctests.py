"""Every example in every docstring runs and shows what it says."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest
import torch

import nnsight_vae

MODULES = sorted(
    {"nnsight_vae", *(m.name for m in pkgutil.walk_packages(nnsight_vae.__path__, "nnsight_vae."))}
    - {"nnsight_vae.__main__"}
)


def test_the_adapters_are_walked_too():
    importlib.import_module("nnsight_vae.adapters")
    assert len(MODULES) > 30


@pytest.mark.parametrize("name", [*MODULES, "nnsight_vae.adapters.base", "nnsight_vae.adapters.generic"])
def test_examples(name):
    module = importlib.import_module(name)
    torch.manual_seed(0)  # a tiny network drawn at random is now and then a dead one
    result = doctest.testmod(module)
    assert result.failed == 0
