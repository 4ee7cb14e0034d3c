"""The methods that score edges, cut by cut: gradients along a path, a run per edge, or no look at the data at all."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nnsight_vae.circuits.contributions import apply, edge_products, port_axis, weight_norms
from nnsight_vae.circuits.edges import Cut
from nnsight_vae.circuits.layers import Column
from nnsight_vae.circuits.pair_run import PairRun, read
from nnsight_vae.circuits.quadrature import PathGradients, Rule, gauss_legendre, path_gradients
from nnsight_vae.engine import CHUNK_BYTES, MIN_ROWS
from nnsight_vae.errors import ReadoutError
from nnsight_vae.readouts import Readout
from nnsight_vae.runs import Write, run_from, start_for
from nnsight_vae.vae import VAE

Method = Literal["exact", "ig", "eap", "weight", "random"]
Direction = Literal["noising", "denoising", "both"]

_ROUNDING = 16  # units in the last place that a forward pass may be off by


class CutScores(NamedTuple):
    """Scores of the edges of one cut.

    Attributes:
        values: [edge, target, pair].
        gap: what plain quadrature is off by in the total effect of each pair; 0 for other methods.
    """

    values: Float[Tensor, "edge target pair"]
    gap: Float[Tensor, "target pair"]


class Scorer:
    """One method, ready to score any cut of any pairs."""

    def __init__(
        self,
        vae: VAE,
        readout: Readout,
        cuts: tuple[Cut, ...],
        method: Method,
        nodes: int,
        direction: Direction,
        seed: int,
    ) -> None:
        self.vae, self.readout, self.cuts, self.method, self.direction = vae, readout, cuts, method, direction
        self.rule: Rule = gauss_legendre(nodes) if method == "ig" else ((0.0, 1.0),)
        self.seed = seed

    def cut(self, run: PairRun, i: int) -> CutScores:
        """The scores of the edges of cut i."""
        if self.method in ("ig", "eap"):
            return self._attributed(run, i)
        values = self._exact(run, i) if self.method == "exact" else self._baseline(run, i)
        return CutScores(values, values.new_zeros(values.shape[1:]))

    # ------------------------------------------------------------------ by gradients
    def _attributed(self, run: PairRun, i: int) -> CutScores:
        cut, chain = self.cuts[i], run.chain
        if i == len(self.cuts) - 1:
            return self._attributed_readout(run, cut)
        column = chain.columns[i]
        gradients = self._path_gradients(run, column)
        result = []
        for by_path in gradients.means:
            if i == 0:
                product = by_path[0] * (run.source.outputs["tap_input"] - run.base.outputs["tap_input"])
                result.append(_sums(product, column.axes[0], column.owners[0], len(column.nodes)))
                continue
            delta = run.change(i - 1)
            parts = zip(chain.layers[i], by_path, cut.edge_of, strict=True)
            result.append(
                torch.stack([edge_products(layer, delta, g, edge, len(cut)) for layer, g, edge in parts]).sum(0)
            )
        return CutScores(torch.stack(result, dim=1), gradients.gap)

    def _path_gradients(self, run: PairRun, column: Column) -> PathGradients:
        """Gradients of each target in the column's pre-activations, averaged along the path."""
        starts = [run.base.outputs[path] for path in column.paths]
        changes = [run.source.outputs[path] - start for path, start in zip(column.paths, starts, strict=True)]

        def through(points: list[Tensor]) -> Tensor:
            writes: dict[str, Write] = {path: _write(point) for path, point in zip(column.paths, points, strict=True)}
            reads = run.chain.reads
            return run_from(run.base, column.paths[0], None, writes, lambda out: read(self.readout, out), reads)

        return path_gradients(starts, changes, through, self.rule, self._known_total(run))

    def _known_total(self, run: PairRun) -> Tensor | None:
        return total_effect(run, self.readout) if self.method == "ig" else None

    def _attributed_readout(self, run: PairRun, cut: Cut) -> CutScores:
        column, start, change = run.chain.columns[-1], run.base_inputs[-1], run.change(-1)
        gradients = path_gradients(
            [start], [change], lambda points: read(self.readout, points[0]), self.rule, self._known_total(run)
        )
        self._refuse_flat(run, [by_path[0] for by_path in gradients.means])
        shares = [_sums(by_path[0] * change, 1, column.ports, len(column.nodes)) for by_path in gradients.means]
        return CutScores(self._into_readouts(cut, torch.stack(shares, dim=1)), gradients.gap)

    def _refuse_flat(self, run: PairRun, gradients: list[Tensor]) -> None:
        effects = total_effect(run, self.readout)
        flat = [
            name
            for name, gradient, effect in zip(self.readout.names, gradients, effects, strict=True)
            if bool(effect.any()) and not bool(gradient.any())
        ]
        if flat:
            remedy = (
                "a distance to the base is flat at the base, where 'eap' takes its gradient: use method='ig', or a signed readout"
                if self.method == "eap"
                else "it is not differentiable (a threshold, an argmax, a detached tensor): use method='exact'"
            )
            raise ReadoutError(
                f"readout target {', '.join(map(repr, flat[:5]))} changes between base and source, but its gradient is exactly 0 "
                f"wherever it was taken, so every edge would score 0; {remedy}."
            )

    # ------------------------------------------------------------------ by running every edge
    def _exact(self, run: PairRun, i: int) -> Tensor:
        if self.direction == "noising":
            return self._noised(run, i)
        denoised = -self._noised(run.reversed(), i)
        return denoised if self.direction == "denoising" else (self._noised(run, i) + denoised) / 2

    @torch.no_grad()
    def _noised(self, run: PairRun, i: int) -> Tensor:
        cut, chain = self.cuts[i], run.chain
        unpatched = read(self.readout, run.base_inputs[-1])
        if i == len(self.cuts) - 1:
            base, change, ports = run.base_inputs[-1], run.change(-1), chain.columns[-1].ports
            shares = [
                read(self.readout, base + _only(change, 1, ports, u)) - unpatched for u in range(len(cut.sources))
            ]
            return self._into_readouts(cut, torch.stack(shares).transpose(1, 2))
        column = chain.columns[i]
        starts = [run.base.outputs[path] for path in column.paths]
        start = start_for(run.base.vae, run.base.x, column.paths[0], chain.reads)
        copies = self._copies(run, start)
        result = unpatched.new_empty(len(cut), len(self.readout.names), len(run))
        for source in range(len(cut.sources)):
            if i == 0:
                added = [run.source.outputs["tap_input"] - starts[0]]
            else:
                axis = port_axis(chain.layers[i][0], run.change(i - 1))
                moved = _only(run.change(i - 1), axis, chain.columns[i - 1].ports, source)
                added = [apply(layer, moved) for layer in chain.layers[i]]
            edges = np.flatnonzero(cut.ends[:, 0] == source)
            for chunk in np.array_split(edges, -(-len(edges) // copies)) if len(edges) else []:
                writes: dict[str, Write] = {}
                for path, axis, owners, p, d in zip(
                    column.paths, column.axes, column.owners, starts, added, strict=True
                ):
                    patched = torch.cat([p + _only(d, axis, owners, v) for v in cut.ends[chunk, 1].tolist()])
                    writes[path] = _write(patched)
                rows = torch.arange(len(run), device=unpatched.device).repeat(len(chunk))
                values = run_from(run.base, start, rows, writes, lambda out: read(self.readout, out), chain.reads)
                result[chunk] = (values.unflatten(0, (len(chunk), len(run))) - unpatched).transpose(1, 2)
        return result

    def _copies(self, run: PairRun, start: str | None) -> int:
        firings = self.vae.layout(run.base.x).firings
        moment = firings[start].finished if start is not None else -1
        largest = max(torch.Size(f.shape[1:]).numel() for f in firings.values() if f.shape and f.finished >= moment)
        rows = max(MIN_ROWS, CHUNK_BYTES // (largest * run.base.x.element_size()))
        return max(1, rows // len(run))

    # ------------------------------------------------------------------ by nothing
    def _baseline(self, run: PairRun, i: int) -> Tensor:
        cut, layers = self.cuts[i], run.chain.layers
        if self.method == "random":
            generator = torch.Generator().manual_seed(self.seed + i)
            scores = torch.randn(len(cut), len(self.readout.names), generator=generator)
        elif cut.edge_of:
            parts = [weight_norms(layer, edge, len(cut)) for layer, edge in zip(layers[i], cut.edge_of, strict=True)]
            scores = torch.stack(parts).sum(0)[:, None].expand(-1, len(self.readout.names))
        else:
            scores = torch.ones(len(cut), len(self.readout.names))  # an end without weights
        return scores[:, :, None].expand(-1, -1, len(run))

    def _into_readouts(self, cut: Cut, shares: Float[Tensor, "unit target pair"]) -> Tensor:
        """Edges unit -> readout:t carry the unit's share to target t and nothing to the others."""
        units, targets = torch.as_tensor(cut.ends, device=shares.device).T
        result = shares.new_zeros(len(cut), *shares.shape[1:])
        result[torch.arange(len(cut)), targets] = shares[units, targets]
        return result


def _sums(product: Tensor, axis: int, owners: Tensor, n_nodes: int) -> Float[Tensor, "node pair"]:
    """Sum of a tensor over each node's units and all positions."""
    per_unit = product.movedim(axis, 0).flatten(2).sum(-1) if product.ndim > 2 else product.movedim(axis, 0)
    owned = owners.to(product.device)
    real = owned >= 0
    return product.new_zeros(n_nodes, len(product)).index_add_(0, owned[real], per_unit[real])


def _write(value: Tensor) -> Write:
    return lambda _: value


def _only(tensor: Tensor, axis: int, owners: Tensor, node: int) -> Tensor:
    """The tensor with everything set to 0 that is not the node's."""
    mask = (owners == node).to(tensor)
    return tensor * mask.view([-1 if a == axis else 1 for a in range(tensor.ndim)])


def total_effect(run: PairRun, readout: Readout) -> Float[Tensor, "target pair"]:
    """readout(source) - readout(base)."""
    with torch.no_grad():
        return (read(readout, run.source_inputs[-1]) - read(readout, run.base_inputs[-1])).T


def resolution_of(run: PairRun, readout: Readout) -> Float[np.ndarray, " target"]:
    """The size below which a change of each target may be rounding, from the readout's own size and precision."""
    with torch.no_grad():
        values = read(readout, run.base_inputs[-1])
    return (_ROUNDING * torch.finfo(values.dtype).eps * values.abs().amax(0)).double().cpu().numpy()
