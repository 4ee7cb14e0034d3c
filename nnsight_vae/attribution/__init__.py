"""Attribution: Captum's methods on a VAE, and those that Captum has no equal of."""

import lazy_loader

# What is public, and where it lives, is written once: in __init__.pyi, which type checkers read too.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
