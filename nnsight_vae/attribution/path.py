"""The path methods: what integrated gradients, conductance and integrated gradients inside a forward have in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from captum.attr._utils.approximation_methods import SUPPORTED_METHODS
from captum.log import log_usage
from jaxtyping import Float
from torch import Tensor

from nnsight_vae.attribution.base import Call, VAEAttribution
from nnsight_vae.attribution.guards import guarded
from nnsight_vae.errors import DataError

CHUNK_BYTES = 16 * 2**20  # of gradients held at a time: more is no faster, and memory would grow with n_steps


class PathAttribution(VAEAttribution):
    """A method that integrates gradients on the way from a baseline to the input, and so adds up to f(x) - f(b).

    Subclasses say in `_of` which site's elements are attributed to, and in `_along_paths` how.
    """

    _of: str

    @log_usage()  # Captum's NoiseTunnel calls attribute.__wrapped__
    def attribute(
        self,
        inputs: Any,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        n_steps: int = 50,
        method: str = "gausslegendre",
        internal_batch_size: int | None = None,
        return_convergence_delta: bool = False,
    ) -> Any:
        """Attributions of the target to every element of what the class attributes to, by the formula of the class.

        Args:
            inputs: `[n, *shape]`, float.
            baselines: b: a name (`"mean"`, `"prior"`, `"black"`), a number, a tensor `[1, *shape]` or `[n, *shape]`, `Pairs`
                (their sources), or a `Distribution` to average over. Default: the mean for inputs, the prior mean for latents.
            target: None for all targets at once; an int, a name, a slice, a tuple, a list or tensor with one per example, a
                `Direction`, or a callable. See `resolve_targets`.
            additional_forward_args: example numbers `[n]`, needed only where eps or interventions differ by example and inputs
                are repeated.
            n_steps: points on the path. The error falls about as 1/n on networks with kinks (ReLU).
            method: Captum's quadrature: `"gausslegendre"`, `"riemann_trapezoid"`, ... (conductance uses its positions, the first and last
                moved to the ends of the path).
            internal_batch_size: rows run at a time; by default as many as keep the gradients within 16 MiB.
            return_convergence_delta: also return sum(A) - (f(x) - f(b)), `[n]` or `[n, targets]`.

        Returns: `[n, *shape]` in units of the target, `[n, targets, *shape]` for `target=None`; shape is that of the inputs, of the
            layer or of the operation.

        Raises:
            DataError, ReadoutError: inputs, baselines or target do not fit; before any work.
        """
        require_steps(n_steps, method, internal_batch_size)
        call = self.start(inputs, baselines, target, additional_forward_args)
        with guarded(self.vae):
            attributions = self._along_paths(call, n_steps, method, internal_batch_size)
            return self.finish(
                call,
                attributions,
                of=self._of,
                complete=True,
                return_convergence_delta=return_convergence_delta,
                n_steps=n_steps,
                method=method,
            )

    def has_convergence_delta(self) -> bool:
        """True: where everything flows through what is attributed to, attributions sum to f(x) - f(b)."""
        return True

    @property
    def multiplies_by_inputs(self) -> bool:
        """True: attributions are gradients times a change of what is attributed to."""
        return True

    @abstractmethod
    def _along_paths(
        self, call: Call, n_steps: int, method: str, batch: int | None
    ) -> Float[Tensor, "n target *shape"]:
        """The attributions, a mean over baselines where there are several."""


def require_steps(n_steps: Any, method: Any, internal_batch_size: Any = None) -> None:
    """Refuse a path that Captum's quadratures cannot take.

    Raises:
        DataError: n_steps or internal_batch_size is no positive integer, or method no quadrature.
    """
    require_batch_size(internal_batch_size)
    if method not in SUPPORTED_METHODS:
        raise DataError(f"method must be one of {', '.join(map(repr, SUPPORTED_METHODS))}, got {method!r}.")
    least = 2 if method == "riemann_trapezoid" else 1
    if isinstance(n_steps, bool) or not isinstance(n_steps, int) or n_steps < least:
        raise DataError(f"n_steps must be an integer of at least {least} for {method!r}, got {n_steps!r}.")


def require_batch_size(internal_batch_size: Any) -> None:
    """Refuse what is no number of rows.

    Raises:
        DataError: it is neither None nor a positive integer.
    """
    size = internal_batch_size
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise DataError(f"internal_batch_size must be None or a positive number of rows, got {size!r}.")
