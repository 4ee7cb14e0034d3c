"""Causal, mechanistic interpretability of Variational Autoencoders, on nnsight."""

import lazy_loader

__version__ = "0.1.0"
# What is public, and where it lives, is written once: in __init__.pyi, which type checkers read too.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
