"""A small structural causal model over named factors, with its exogenous noise in the open."""

from __future__ import annotations

import graphlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from ..errors import DataError
from .mechanisms import Mechanism as Mechanism

if TYPE_CHECKING:
    import networkx as nx

Do = Mapping[str, float | int | np.ndarray]


class SCM:
    """Variables, their mechanisms and independent noises: x_j = f_j(x_parents(j), noise_j).

    Noise is always returned and can be given back, so a counterfactual is one more evaluation with the same noise.
    `do` replaces mechanisms: the variables it names take the given values and cause their descendants as before.

    Args:
        mechanisms: name -> `Mechanism`. The order of the names is the order of the columns everywhere.
        dtype: in what precision values are kept. With float32, values stored as float32 and given back to `do`
            reproduce the descendants to the last bit.

    Attributes:
        names: the variables, in column order.
        weights: of a linear model (`SCM.linear`), (cause, effect) -> weight; None of others.

    Raises:
        DataError: if there are no variables, a parent is unknown, or the parents form a cycle.

    Source: Pearl, Causality (2009), section 7.1: actions replace mechanisms, counterfactuals share exogenous noise.

    Example:
        >>> import numpy as np
        >>> normal = lambda rng, n: rng.normal(size=n)
        >>> scm = SCM({
        ...     "x": Mechanism((), lambda parents, noise: noise, normal),
        ...     "y": Mechanism(("x",), lambda parents, noise: 3 * parents["x"] + noise, normal),
        ... })
        >>> values, noise = scm.sample(2, np.random.default_rng(0))
        >>> (scm.counterfactual(noise, {"x": values[:, 0] + 1}) - values).round(6).tolist()
        [[1.0, 3.0], [1.0, 3.0]]
    """

    weights: dict[tuple[str, str], float] | None = None

    def __init__(self, mechanisms: Mapping[str, Mechanism], dtype: type[np.floating] = np.float64) -> None:
        if not mechanisms:
            raise DataError("SCM: got no mechanisms, expected {name: Mechanism(parents, function, noise)}.")
        self.names = tuple(mechanisms)
        self.mechanisms = dict(mechanisms)
        self.dtype = np.dtype(dtype)
        for name, mechanism in self.mechanisms.items():
            unknown = [parent for parent in mechanism.parents if parent not in self.mechanisms]
            if unknown:
                raise DataError(f"SCM: {name!r} has unknown parents {unknown}; variables are {self.names}.")
        try:
            order = graphlib.TopologicalSorter({name: m.parents for name, m in self.mechanisms.items()}).static_order()
            self._order = tuple(order)
        except graphlib.CycleError as error:
            raise DataError(f"SCM: the mechanisms form a cycle {' -> '.join(error.args[1])}.") from error

    @classmethod
    def linear(cls, weights: Mapping[tuple[str, str], float], noise: Mapping[str, float]) -> SCM:
        """A linear Gaussian model: `x_j = sum_i W_ij x_i + sd_j N(0, 1)`.

        Args:
            weights: (cause, effect) -> W_ij.
            noise: variable -> sd_j, at least 0; its keys are the variables, in column order.

        Raises:
            DataError: an unknown variable, a cycle, or numbers that are not finite.

        Example:
            >>> SCM.linear({("x", "y"): 2.0}, {"x": 1.0, "y": 0.1})
            SCM(x, y; x -> y)
        """
        if unknown := [pair for pair in weights if not set(pair) <= set(noise)]:
            raise DataError(f"SCM.linear: weights of {unknown}, but noise names the variables {tuple(noise)}.")
        if not np.isfinite([*weights.values(), *noise.values()]).all() or min(noise.values(), default=0) < 0:
            raise DataError("SCM.linear: expected finite weights, and standard deviations of at least 0.")

        def mechanism(name: str, sd: float) -> Mechanism:
            causes = {cause: weight for (cause, effect), weight in weights.items() if effect == name and weight}
            return Mechanism.additive(
                tuple(causes),
                lambda p: sum((weight * p[cause] for cause, weight in causes.items()), 0.0),
                lambda rng, n: sd * rng.standard_normal(n),
            )

        scm = cls({name: mechanism(name, sd) for name, sd in noise.items()})
        scm.weights = dict(weights)
        return scm

    def total_effects(self) -> Float[np.ndarray, "f f"]:
        """Of a linear model: what one unit more of variable i adds to variable j, `(I - W)^-1`, 1 on the diagonal.

        Raises:
            DataError: the model was not made by `SCM.linear`.

        Source: Bollen 1989, Structural Equations with Latent Variables, chapter 8.

        Example:
            >>> scm = SCM.linear({("x", "y"): 2.0, ("y", "z"): 3.0}, {"x": 1.0, "y": 1.0, "z": 1.0})
            >>> scm.total_effects()[0].tolist()
            [1.0, 2.0, 6.0]
        """
        if self.weights is None:
            raise DataError(
                "SCM.total_effects: effects of a non-linear model depend on the value; take differences of counterfactual(), "
                "or make the model with SCM.linear(weights, noise)."
            )
        matrix = np.zeros((len(self.names), len(self.names)))
        for (cause, effect), weight in self.weights.items():
            matrix[self.names.index(cause), self.names.index(effect)] = weight
        return np.linalg.inv(np.eye(len(matrix)) - matrix)

    @property
    def discrete(self) -> dict[str, tuple[float, ...]]:
        """The discrete variables and the values they can take."""
        return {name: m.values for name, m in self.mechanisms.items() if m.values is not None}

    def ancestors(self, name: str) -> tuple[str, ...]:
        """All causes of a variable, direct and indirect, in column order.

        Raises:
            DataError: an unknown variable.
        """
        return self._reached(name, "ancestors")

    def descendants(self, name: str) -> tuple[str, ...]:
        """All effects of a variable, direct and indirect, in column order.

        Raises:
            DataError: an unknown variable.
        """
        return self._reached(name, "descendants")

    def _reached(self, name: str, how: str) -> tuple[str, ...]:
        import networkx as nx

        if name not in self.mechanisms:
            raise DataError(f"SCM.{how}: no variable {name!r}; variables are {self.names}.")
        found = getattr(nx, how)(self.graph, name)
        return tuple(each for each in self.names if each in found)

    @property
    def graph(self) -> nx.DiGraph:
        """The causal graph: an edge from each parent to its child; a new graph per call."""
        import networkx as nx

        graph = nx.DiGraph()
        graph.add_nodes_from(self.names)
        graph.add_edges_from((parent, name) for name, m in self.mechanisms.items() for parent in m.parents)
        return graph

    def sample(
        self, n: int, rng: np.random.Generator, do: Do | None = None, noise: Float[np.ndarray, "n f"] | None = None
    ) -> tuple[Float[np.ndarray, "n f"], Float[np.ndarray, "n f"]]:
        """Draw n units, under `do` where given.

        The noise of every variable is drawn, intervened on or not, so the same generator state gives the same units
        with and without `do`.

        Args:
            n: number of units.
            rng: generator the noise is drawn from.
            do: variable -> value for all units, or one value per unit, shape (n,).
            noise: use this noise instead of drawing it; one column per variable.

        Returns:
            Values and noise, each with one row per unit and one column per variable in the order of `names`.

        Raises:
            DataError: if n is not a positive integer, or noise or do are ill-formed.
        """
        if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
            raise DataError(f"SCM.sample: n is {n!r}, expected a positive integer.")
        if noise is None:
            noise = np.empty((n, len(self.names)))
            for column, name in enumerate(self.names):
                drawn = np.asarray(self.mechanisms[name].noise(rng, n))
                noise[:, column] = _checked(f"the noise of {name!r}", drawn, n)
        elif len(noise) != n:
            raise DataError(f"SCM.sample: noise has {len(noise)} rows, expected n = {n}.")
        return self.counterfactual(noise, do), noise

    def counterfactual(self, noise: Float[np.ndarray, "n f"], do: Do | None = None) -> Float[np.ndarray, "n f"]:
        """The values the same units (the same noise) would have had under `do`.

        Args:
            noise: the units' exogenous noise, as `sample` returned it.
            do: variable -> value for all units, or one value per unit, shape (n,). None or {}: the factual values.

        Returns:
            One row per unit, one column per variable in the order of `names`. Non-descendants of the intervened
            variables keep their factual values to the last bit.

        Raises:
            DataError: if noise or do are ill-formed, or a mechanism returns something else than n finite numbers.
        """
        noise = np.asarray(noise)
        if noise.ndim != 2 or noise.shape[1] != len(self.names):
            raise DataError(
                f"SCM: noise has shape {noise.shape}, expected (n, {len(self.names)}): columns {self.names}."
            )
        n, do = len(noise), dict(do or {})
        unknown = [name for name in do if name not in self.mechanisms]
        if unknown:
            raise DataError(f"SCM: cannot do({', '.join(map(str, unknown))}); variables are {self.names}.")
        columns: dict[str, np.ndarray] = {}
        for name in self._order:
            if name in do:
                value, what = np.asarray(do[name]), f"do({name})"
            else:
                mechanism = self.mechanisms[name]
                parents = {parent: columns[parent] for parent in mechanism.parents}
                value = mechanism.function(parents, noise[:, self.names.index(name)])
                what = f"the mechanism of {name!r}"
            columns[name] = _checked(what, np.asarray(value), n).astype(self.dtype)
            _check_levels(what, columns[name], self.mechanisms[name].values)
        return np.stack([columns[name] for name in self.names], axis=1)

    def abduct(self, values: Float[np.ndarray, "n f"]) -> Float[np.ndarray, "n f"]:
        """The noise of units whose values were observed: the first step of a counterfactual of data that came without it.

        Args:
            values: one row per unit, one column per variable in the order of `names`.

        Returns: noise that gives these values, to rounding; a counterfactual is `counterfactual(noise, do)`.

        Raises:
            DataError: a mechanism states no inverse (of a discrete variable many noises give one value), the values are ill-formed,
                or no noise gives them.

        Source: Pearl, Causality (2009), theorem 7.1.7: abduction, action, prediction.

        Example:
            >>> scm = SCM.linear({("x", "y"): 2.0}, {"x": 1.0, "y": 1.0})
            >>> scm.abduct(np.array([[1.0, 2.5]])).tolist()
            [[1.0, 0.5]]
        """
        values = np.asarray(values, dtype=np.float64)
        if values.ndim != 2 or values.shape[1] != len(self.names) or not np.isfinite(values).all():
            raise DataError(
                f"SCM.abduct: values have shape {values.shape}, expected finite numbers (n, {len(self.names)}): columns {self.names}."
            )
        columns = dict(zip(self.names, values.T, strict=True))
        noise = np.empty_like(values)
        for j, (name, mechanism) in enumerate(self.mechanisms.items()):
            if mechanism.inverse is None:
                raise DataError(
                    f"SCM.abduct: the mechanism of {name!r} has no inverse, so its noise cannot be told from values; state "
                    "Mechanism(..., inverse=...), or keep the noise that sample() returned."
                )
            found = mechanism.inverse({parent: columns[parent] for parent in mechanism.parents}, columns[name])
            noise[:, j] = _checked(f"the inverse of {name!r}", np.asarray(found), len(values))
        off = np.abs(self.counterfactual(noise) - values) > np.sqrt(np.finfo(self.dtype).eps) * (1 + np.abs(values))
        if off.any():
            row, j = np.argwhere(off)[0]
            raise DataError(
                f"SCM.abduct: no noise gives {self.names[j]} = {values[row, j]:g} of unit {row}, given its causes; "
                f"{int(off.any(axis=1).sum())} of {len(values)} units cannot come about in this model."
            )
        return noise

    def __repr__(self) -> str:
        edges = ", ".join(f"{parent} -> {name}" for name, m in self.mechanisms.items() for parent in m.parents)
        return f"SCM({', '.join(self.names)}{'; ' + edges if edges else ''})"


def _checked(what: str, value: np.ndarray, n: int) -> np.ndarray:
    if value.dtype.kind not in "fiub":
        raise DataError(f"SCM: {what} gave {value.dtype} values, expected real numbers.")
    if value.shape not in ((), (n,)):
        raise DataError(f"SCM: {what} gave shape {value.shape}, expected one number or one per unit, shape ({n},).")
    if not np.isfinite(value).all():
        raise DataError(f"SCM: {what} gave NaN or infinite values.")
    return np.broadcast_to(value, (n,))


def _check_levels(what: str, values: np.ndarray, levels: tuple[float, ...] | None) -> None:
    if levels is None:
        return
    known = np.isin(values, np.asarray(levels, dtype=values.dtype))
    if not known.all():
        shown = ", ".join(f"{level:g}" for level in levels)
        raise DataError(
            f"SCM: {what} gave {values[~known][0]:g}, but the variable is discrete and takes {shown} only; there is nothing between."
        )
