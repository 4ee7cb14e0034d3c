"""What holds for every test: it draws the same numbers each time, whichever tests ran before it.

No import of the library here: jaxtyping instruments it when it is first imported, which must be after this file (test_annotations.py).
"""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before the fixtures of a test: weights of layers and draws of libraries come from the global generators."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
