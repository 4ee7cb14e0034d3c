"""VAEs whose circuit is known: built by hand, wired by a mask, or trained to it; and how well methods find it."""

import lazy_loader

# What is public, and where it lives, is written once: in __init__.pyi, which type checkers read too.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
