"""How one variable of a structural causal model comes about from its causes and its own noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import DataError

Values = Mapping[str, np.ndarray]
Noise = Callable[[np.random.Generator, int], np.ndarray]


@dataclass(frozen=True)
class Mechanism:
    """How one variable comes about: `value = function(parents, noise)`.

    Args:
        parents: names of its direct causes; empty for a root.
        function: vectorised over n units: takes {parent: values of shape (n,)} and the noise, shape (n,), and returns
            the variable's values, shape (n,). It must not draw random numbers of its own.
        noise: draws the variable's exogenous noise, (generator, n) -> shape (n,).
        inverse: takes {parent: values} and the variable's values, and returns the noise that gave them: what abduction needs.
            None where many noises give one value, as of a discrete variable.
        values: of a discrete variable, every value that it can take; None: any number.

    Example:
        >>> import numpy as np
        >>> normal = lambda rng, n: rng.normal(size=n)
        >>> double = Mechanism(("x",), lambda parents, noise: 2 * parents["x"] + noise, normal)
        >>> double.function({"x": np.array([1.0, 2.0])}, np.zeros(2))
        array([2., 4.])
    """

    parents: tuple[str, ...]
    function: Callable[[Values, np.ndarray], np.ndarray]
    noise: Noise
    inverse: Callable[[Values, np.ndarray], np.ndarray] | None = None
    values: tuple[float, ...] | None = None

    @classmethod
    def additive(
        cls, parents: Sequence[str], function: Callable[[Values], np.ndarray | float], noise: Noise
    ) -> Mechanism:
        """`value = function(parents) + noise`, whose noise can be abducted.

        Example:
            >>> double = Mechanism.additive(("x",), lambda p: 2 * p["x"], lambda rng, n: rng.normal(size=n))
            >>> double.inverse({"x": np.array([1.0])}, np.array([2.5]))
            array([0.5])
        """
        return cls(tuple(parents), lambda p, u: function(p) + u, noise, lambda p, value: value - function(p))

    @classmethod
    def categorical(
        cls,
        values: Sequence[float | int],
        probabilities: Sequence[float] | Callable[[Values], np.ndarray],
        parents: Sequence[str] = (),
    ) -> Mechanism:
        """A discrete variable: of uniform noise u, the first value whose cumulated probability is above u.

        Two interventions on a cause share u, so a unit changes its value only where the probabilities ask for it.

        Args:
            values: that it can take.
            probabilities: one of each value; or a function of {parent: values} that returns them, `[n, value]`.
            parents: names of its direct causes.

        Raises:
            DataError: values that repeat or are not finite; probabilities that are no distribution over them (of a function: when
                it is sampled).

        Example:
            >>> coin = Mechanism.categorical((0, 1), (0.7, 0.3))
            >>> coin.function({}, np.array([0.1, 0.69, 0.71]))
            array([0., 0., 1.])
        """
        levels = np.asarray(values, dtype=np.float64)
        if levels.ndim != 1 or not levels.size or len(np.unique(levels)) < len(levels) or not np.isfinite(levels).all():
            raise DataError(f"Mechanism.categorical: values={values!r}: expected different finite numbers.")
        if not callable(probabilities):
            fixed = _distribution(probabilities, levels)

        def value(parents: Values, noise: np.ndarray) -> np.ndarray:
            given = _distribution(probabilities(parents), levels) if callable(probabilities) else fixed
            below = noise[:, None] >= np.cumsum(given, axis=-1)
            return levels[below[:, :-1].sum(axis=1)]  # the last one is what is left, whatever rounding makes of the sum

        return cls(tuple(parents), value, lambda rng, n: rng.random(n), values=tuple(levels.tolist()))


def _distribution(probabilities: Sequence[float] | np.ndarray, levels: np.ndarray) -> np.ndarray:
    given = np.asarray(probabilities, dtype=np.float64)
    if given.ndim not in (1, 2) or given.shape[-1] != len(levels) or not (given >= 0).all():
        raise DataError(
            f"Mechanism.categorical: probabilities of shape {given.shape}, expected one number >= 0 of each of {len(levels)} values."
        )
    if not np.allclose(given.sum(axis=-1), 1, atol=1e-6):
        raise DataError("Mechanism.categorical: probabilities do not sum to 1.")
    return given
