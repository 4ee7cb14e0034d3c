"""The pipeline null: was the structure of a circuit learned? The same extraction on untrained models, and on shuffled pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import networkx as nx
import numpy as np
from jaxtyping import Float

from nnsight_vae.arguments import require
from nnsight_vae.circuits.selection.search import extract_circuit
from nnsight_vae.circuits.structure.nulls import at_least
from nnsight_vae.circuits.structure.tables import number, table
from nnsight_vae.circuits.structure.unlearned import Shuffle, reinitialised, shuffled
from nnsight_vae.errors import CircuitError, DataError
from nnsight_vae.pairs import Pairs
from nnsight_vae.progress import progress_bar
from nnsight_vae.readouts import Readout
from nnsight_vae.vae import VAE

if TYPE_CHECKING:
    import pandas as pd

Alternative = Literal["greater", "less", "two-sided"]
Extract = Callable[[VAE, Pairs, Readout], nx.DiGraph]
Statistic = Callable[[Any], float | None]  # of a circuit, or of {factor: circuit}

_ARMS = {
    "untrained": "models of the same architecture, untrained",
    "sources": "sources dealt out anew among the pairs",
    "orientation": "base and source exchanged in half of the pairs",
}


@dataclass(frozen=True, repr=False)
class NullArm:
    """One way of making null circuits.

    Attributes:
        name: "untrained", "sources" or "orientation".
        values: the statistic of each null circuit; None where it has none.
        p: empirical p-value; a null circuit without a statistic counts as at least as extreme.
        undefined: why null circuits have no statistic, each reason once.
    """

    name: str
    values: tuple[float | None, ...]
    p: float | None
    undefined: tuple[str, ...] = ()

    @property
    def defined(self) -> Float[np.ndarray, " draw"]:
        """The statistics there are."""
        return np.array([value for value in self.values if value is not None], dtype=float)


@dataclass(frozen=True, repr=False)
class PipelineNull:
    """A statistic of a model's circuit beside that of circuits that were not learned.

    Attributes:
        observed: the statistic of the model's circuit; None where it has none.
        arms: the null circuits, by how they were made.
        alternative: which values count as extreme.
        reason: why `observed` is None, or "".
    """

    observed: float | None
    arms: dict[str, NullArm]
    alternative: Alternative
    reason: str = ""

    def to_frame(self) -> pd.DataFrame:
        """One row per null circuit, after that of the model: arm, draw, value."""
        import pandas as pd

        rows: list[tuple[str, int | None, float | None]] = [("observed", None, self.observed)]
        rows += [(name, i, value) for name, arm in self.arms.items() for i, value in enumerate(arm.values)]
        return pd.DataFrame(rows, columns=["arm", "draw", "value"]).astype({"draw": "Int64", "value": "Float64"})

    def __str__(self) -> str:
        rows = []
        for name, arm in self.arms.items():
            known = arm.defined
            mean, low, high = (float(f(known)) if len(known) else None for f in (np.mean, np.min, np.max))
            note = _ARMS[name]
            if missing := len(arm.values) - len(known):
                note += f"; {missing} without a statistic count as extreme ({arm.undefined[0]})"
            spread = f"[{number(low)}, {number(high)}]" if len(known) else ""
            rows.append((name, number(len(arm.values)), number(mean), spread, number(arm.p), note))
        value = f"none: {self.reason}" if self.observed is None else number(self.observed)
        return table(
            f"Pipeline null: observed {value} ({self.alternative})", ("null", "n", "mean", "range", "p", ""), rows
        )

    def __repr__(self) -> str:
        ps = ", ".join(f"p_{name}={number(arm.p)}" for name, arm in self.arms.items())
        return f"PipelineNull({number(self.observed) or None}, {ps})"


def pipeline_null(
    vae: VAE,
    pairs: Pairs | Mapping[str, Pairs],
    readout: Readout,
    statistic: Statistic,
    *,
    n: int = 19,
    seed: int = 0,
    untrained: Callable[[VAE, int], VAE] | None = reinitialised,
    shuffle: Shuffle | None = "sources",
    extract: Extract = extract_circuit,
    alternative: Alternative = "greater",
    progress: bool | None = None,
) -> PipelineNull:
    """Hold a statistic of a model's circuit against circuits that training on this factor cannot have made.

    Null graphs say whether a circuit differs from chance given its layers; an untrained network's circuit may differ as much. Only
    the whole pipeline, run again on what was not learned, tells these apart:

        untrained      the same pairs through models of the same architecture with new random weights
        sources        the same model; every base gets the source of another pair. The mean of the factor's change, and so the
                       mean total effect, stay; that nothing else changes within a pair is gone
        orientation    the same model; base and source of random half of the pairs (whole clusters) are exchanged. Nothing
                       changes on average: mostly there is no circuit, and this checks that extraction finds none

    Args:
        vae: the model; it is not touched.
        pairs: as for `extract`; or {factor: pairs}, of each of which a circuit is extracted.
        readout: as for `extract`.
        statistic: from a circuit (or {factor: circuit}) to a number, such as `lambda c: motifs(c)["bi-fan"].observed`; None where it
            has none. Give an empty circuit a number if it means one.
        n: null circuits of each kind; the least p is 1 / (n + 1), or twice that.
        seed: of weights and shuffles; null circuit i has seed + i.
        untrained: (vae, seed) -> an untrained VAE; by default `reinitialised`. None: not done.
        shuffle: how pairs are shuffled; None: not done.
        extract: (vae, pairs, readout) -> circuit; `functools.partial(extract_circuit, method="eap")` sets options.
        alternative: "greater": the model's statistic is larger than of what was not learned; "less"; "two-sided".
        progress: show a bar; by default on an interactive terminal.

    Returns: the statistic with those of the null circuits, and (1 + #as extreme) / (1 + n) for each kind.

    Raises:
        CircuitError: n, shuffle or alternative is not one of those above, or the statistic returns no number.
        DataError: a single pair, which cannot be shuffled.
        AdapterError: as `reinitialised`.

    Source: Adebayo et al. 2018, arXiv 1810.03292 (randomised models and data as the null); Phipson & Smyth 2010 (the +1).

    Example:
        >>> import torch
        >>> from nnsight_vae.models import MLPVAE
        >>> from nnsight_vae.readouts import Latents
        >>> vae = VAE(MLPVAE(image_shape=(1, 4, 4), latent=2, hidden=(4,)))
        >>> dark = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(0)) / 2
        >>> found = pipeline_null(vae, Pairs(dark, dark + 0.5, factor="light"), Latents(2), len, n=3)
        >>> sorted(found.arms), 0.25 <= found.arms["untrained"].p <= 1
        (['sources', 'untrained'], True)
    """
    named = pairs if isinstance(pairs, Mapping) else {"": pairs}
    for each in named.values():
        require(vae, each, readout)
    _check(n, shuffle, alternative, named)
    # made before any work, so that what cannot be made is refused first
    first = None if untrained is None else _checked(untrained(vae, seed))

    def measured(model: VAE, of: Mapping[str, Pairs]) -> tuple[float | None, str]:
        try:
            circuits = {factor: extract(model, each, readout) for factor, each in of.items()}
        except CircuitError as error:
            return None, f"no circuit: {error}"
        value = statistic(circuits if isinstance(pairs, Mapping) else circuits[""])
        return _as_number(value), "the statistic is None"

    observed, reason = measured(vae, named)
    arms: dict[str, NullArm] = {}
    kinds = [name for name, wanted in (("untrained", untrained), (str(shuffle), shuffle)) if wanted is not None]
    with progress_bar("null circuits", n * len(kinds), progress) as advance:
        for kind in kinds:
            found = []
            for i in range(n):
                if kind == "untrained" and first is not None and untrained is not None:
                    found.append(measured(_checked(untrained(vae, seed + i)) if i else first, named))
                else:
                    found.append(measured(vae, {f: shuffled(each, kind, seed + i) for f, each in named.items()}))
                if advance is not None:
                    advance(1)
            arms[kind] = _arm(kind, observed, found, alternative)
    return PipelineNull(observed, arms, alternative, "" if observed is not None else reason)


def _arm(name: str, observed: float | None, found: list[tuple[float | None, str]], alternative: Alternative) -> NullArm:
    values = tuple(value for value, _ in found)
    undefined = tuple(dict.fromkeys(reason for value, reason in found if value is None))
    if observed is None:
        return NullArm(name, values, None, undefined)
    drawn = np.array([value for value in values if value is not None], dtype=float)[:, None]
    as_extreme = {
        sign: at_least(np.array([sign * observed]), sign * drawn)[0] * (1 + len(drawn)) for sign in (1.0, -1.0)
    }
    n_missing = len(values) - len(drawn)
    greater, less = ((as_extreme[sign] + n_missing) / (1 + len(values)) for sign in (1.0, -1.0))
    p = {"greater": greater, "less": less, "two-sided": min(1.0, 2 * min(greater, less))}[alternative]
    return NullArm(name, values, float(p), undefined)


def _as_number(value: Any) -> float | None:
    if value is None:
        return None
    try:
        result = float(value)
    except (TypeError, ValueError):
        result = float("nan")
    if not np.isfinite(result):
        raise CircuitError(f"statistic returned {value!r}; expected a finite number, or None where a circuit has none.")
    return result


def _checked(model: Any) -> VAE:
    require(model)
    return model


def _check(n: int, shuffle: str | None, alternative: str, pairs: Mapping[str, Pairs]) -> None:
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise CircuitError(f"n={n!r}: expected a positive number of null circuits, 19 for p down to .05.")
    if shuffle is not None and shuffle not in get_args(Shuffle):
        raise CircuitError(f"shuffle={shuffle!r} is not known; expected 'sources', 'orientation' or None.")
    if alternative not in get_args(Alternative):
        raise CircuitError(f"alternative={alternative!r} is not known; expected 'greater', 'less' or 'two-sided'.")
    if not pairs or (shuffle is not None and min(map(len, pairs.values())) < 2):
        raise DataError("pairs cannot be shuffled with fewer than two of them; use more, or shuffle=None.")
