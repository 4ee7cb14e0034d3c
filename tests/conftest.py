"""What holds for every test: property tests draw the same examples each time, and may be slow on a busy machine.

No import of the library here: jaxtyping instruments it when it is first imported, which must be after this file (test_annotations.py).
"""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
