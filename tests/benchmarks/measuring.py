"""Seconds and memory of what a benchmark runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path


def seconds(function: Callable[[], object]) -> float:
    start = time.thread_time()
    function()
    return time.thread_time() - start


def resident(line: str) -> float:
    """MiB of this process: now (VmRSS), or the most there was (VmHWM). Linux only."""
    (found,) = (text for text in Path("/proc/self/status").read_text().splitlines() if text.startswith(line))
    return int(found.split()[1]) / 2**10
