"""The one family of errors: each says what was got, what was expected, where, and what to do."""


class NnsightVaeError(Exception):
    """Base of every error this package raises on purpose."""


class SiteError(NnsightVaeError):
    """A site or unit was named that this VAE does not have, or cannot serve."""


class AdapterError(NnsightVaeError):
    """A module could not be read as a VAE, or its wrapped form disagrees with it."""


class PriorError(NnsightVaeError):
    """A KL per latent was asked of a posterior that has none, or whose prior is not known."""


class InterventionError(NnsightVaeError):
    """An intervention is ill-formed, or does not fit the site it is applied to."""


class DataError(NnsightVaeError):
    """Images, pairs, factors or files are not what the call needs."""


class ReadoutError(NnsightVaeError):
    """A readout is unknown, unreliable, or does not fit the model's output."""


class CircuitError(NnsightVaeError):
    """A circuit or graph is ill-formed, or a score is undefined for it."""


class NnsightVaeWarning(UserWarning):
    """A result is valid but should be read with the stated caution."""
