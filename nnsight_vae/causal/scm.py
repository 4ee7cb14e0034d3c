"""A small structural causal model over named factors, with its exogenous noise in the open."""

from __future__ import annotations

import graphlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from ..errors import DataError

if TYPE_CHECKING:
    import networkx as nx

Values = Mapping[str, np.ndarray]
Do = Mapping[str, float | np.ndarray]


@dataclass(frozen=True)
class Mechanism:
    """How one variable comes about: `value = function(parents, noise)`.

    Args:
        parents: names of its direct causes; empty for a root.
        function: vectorised over n units: takes {parent: values of shape (n,)} and the noise, shape (n,), and returns
            the variable's values, shape (n,). It must not draw random numbers of its own.
        noise: draws the variable's exogenous noise, (generator, n) -> shape (n,).

    Example:
        >>> import numpy as np
        >>> normal = lambda rng, n: rng.normal(size=n)
        >>> double = Mechanism(("x",), lambda parents, noise: 2 * parents["x"] + noise, normal)
        >>> double.function({"x": np.array([1.0, 2.0])}, np.zeros(2))
        array([2., 4.])
    """

    parents: tuple[str, ...]
    function: Callable[[Values, np.ndarray], np.ndarray]
    noise: Callable[[np.random.Generator, int], np.ndarray]


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
                value, what = (
                    mechanism.function(parents, noise[:, self.names.index(name)]),
                    f"the mechanism of {name!r}",
                )
            columns[name] = _checked(what, np.asarray(value), n).astype(self.dtype)
        return np.stack([columns[name] for name in self.names], axis=1)

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
