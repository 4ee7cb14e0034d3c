"""The two directions of patching between base and source, and what each estimates."""

from __future__ import annotations

from typing import Literal

Way = Literal["noising", "denoising"]  # the source's activation into the base run; the base's into the source run
Direction = Literal["both", "noising", "denoising"]

ESTIMANDS: dict[str, str] = {"noising": "PNIE (noising)", "denoising": "TNIE (denoising)"}
