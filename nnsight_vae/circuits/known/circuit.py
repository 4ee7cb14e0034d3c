"""`KnownCircuit`: a VAE whose circuit is known, with the pairs and the readout that show it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import networkx as nx
import torch
from jaxtyping import Float
from torch import Tensor

from nnsight_vae.errors import DataError
from nnsight_vae.pairs import Pairs
from nnsight_vae.readouts import Readout
from nnsight_vae.vae import VAE

Edge = tuple[str, str]


class Task(NamedTuple):
    """A question with a known answer: by which edges does a factor change a target of the readout?"""

    factor: str
    target: str


class EdgeGroup(NamedTuple):
    """Routes that mean something together and not one by one; their edges are excluded from scores of single edges.

    Attributes:
        kind: `"redundant"`: any one route is enough, so taking one away changes nothing; `"cancelling"`: each moves the
            readout and all together do not.
        task: where.
        routes: the edges of each route.
    """

    kind: Literal["redundant", "cancelling"]
    task: Task
    routes: tuple[frozenset[Edge], ...]


@dataclass(frozen=True, eq=False, repr=False)
class KnownCircuit:
    """A VAE and the edges that its factors' effects run through.

    Attributes:
        vae: the model, ready for `score_edges`, `extract_circuit` and `faithfulness`.
        dag: what the model's decoder does with the factors: an edge f -> g where a change of f changes the picture of g.
        readout: one target per factor, linear in the image (or in its logits).
        truth: for each `Task` the edges that matter, by the node ids of `score_edges`, from `factor:f` to `readout:t`.
        excluded: for each task the edges that are neither right nor wrong to find.
        groups: excluded edges with a joint meaning.
        description: one line on what is known and why.
        draw: makes the pairs; see `pairs`.
    """

    vae: VAE
    dag: nx.DiGraph
    readout: Readout
    truth: Mapping[Task, frozenset[Edge]]
    description: str
    draw: Callable[[str, int, int], Pairs]
    excluded: Mapping[Task, frozenset[Edge]] = field(default_factory=dict)
    groups: tuple[EdgeGroup, ...] = ()

    @property
    def factors(self) -> tuple[str, ...]:
        """Names of the factors."""
        return tuple(self.dag)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The questions whose answer is known."""
        return tuple(self.truth)

    def pairs(self, factor: str, n: int = 64, seed: int = 0) -> Pairs:
        """Oriented pairs that differ by an intervention on one factor, all noise shared.

        Args:
            factor: one of `factors`.
            n: number of pairs.
            seed: the same seed gives the same pairs.

        Raises:
            DataError: the factor is unknown, or n is not positive.
        """
        if factor not in self.dag:
            raise DataError(f"factor {factor!r} is unknown; this model's factors are {', '.join(self.factors)}.")
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise DataError(f"n={n!r}: expected a positive number of pairs.")
        return self.draw(factor, n, seed)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{task.factor} -> {task.target}: {len(edges)} edges" for task, edges in self.truth.items())
        return f"KnownCircuit({self.description}; {sizes})"


@dataclass(frozen=True, eq=False)
class Projection:
    """Readout: inner products of the reconstruction (or of its logits) with fixed images, one per target.

    Args:
        names: names of the targets.
        weights: `[target, *image]`.
        offset: subtracted from every pixel first.
        logits: read log(x / (1 - x)) instead of pixels x in (0, 1).

    Example:
        >>> left = Projection(("left",), torch.tensor([[[[1.0, 0.0]]]]), offset=0.5)
        >>> left(torch.tensor([[[[0.75, 0.0]]]])).tolist()
        [[0.25]]
    """

    names: tuple[str, ...]
    weights: Float[Tensor, " target *image"]
    offset: float | Tensor = 0.0
    logits: bool = False

    reads = "output"

    def __call__(self, reconstruction: Float[Tensor, " n *image"], /) -> Float[Tensor, "n target"]:
        """The targets of each reconstruction."""
        image = torch.logit(reconstruction) if self.logits else reconstruction
        offset = self.offset.to(image) if isinstance(self.offset, Tensor) else self.offset
        return (image - offset).flatten(1) @ self.weights.to(image).flatten(1).T
