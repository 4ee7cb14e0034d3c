"""Where replacement activations come from: each intervention at each site as `scale * a + shift`, chunk by chunk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nnsight_vae.errors import InterventionError
from nnsight_vae.interventions import Add, Intervention, Mean, Noise, Quantize, Resample, Scale, Set, Swap, Zero
from nnsight_vae.runs import clean_run
from nnsight_vae.sites import Selection, Site, Unit
from nnsight_vae.vae import VAE

Joint = Mapping[Selection, Intervention]

_ROWS = 64  # rows of a reference batch run at once, and examples whose noise is drawn at once


class Replacement(NamedTuple):
    """`a <- scale * a + shift`; `scale=None` replaces a outright. `shift` broadcasts against `[n, units, ...]`, `[n, units]` at a position."""

    scale: float | None
    shift: float | Tensor


class Donors:
    """The activations that a plan's `Swap`, `Mean`, `Resample`, `Noise` need, computed once and handed out by example chunk."""

    def __init__(self, vae: VAE, joints: Sequence[Joint], x: Tensor, eps: Tensor | None) -> None:
        self.vae, self.x, self.eps = vae, x, eps
        self.sites = vae.sites
        # Inputs that activations are swapped in from: by id, the batch, which row of it each example gets, the sites wanted of it.
        self._wanted: dict[int, tuple[Tensor, Tensor | None, set[str]]] = {}
        self._means: dict[tuple[int, str], Tensor] = {}
        for joint in joints:
            for selection, intervention in joint.items():
                self._prepare(selection, intervention)
        self._prepare_means(joints)

    def _prepare(self, selection: Selection, intervention: Intervention) -> None:
        site = self.sites[selection.site]
        if isinstance(intervention, Set | Add):
            value = intervention.value if isinstance(intervention, Set) else intervention.delta
            if isinstance(value, Tensor):
                self._require_broadcast(value, selection, site, intervention)
        elif isinstance(intervention, Swap):
            self._require_inputs(intervention.source, (1, len(self.x)), intervention)
            self._wanted.setdefault(_source(intervention), (intervention.source, None, set()))[2].add(site.name)
        elif isinstance(intervention, Resample):
            self._require_inputs(intervention.reference, None, intervention)
            if _source(intervention) not in self._wanted:
                generator = torch.Generator().manual_seed(intervention.seed)
                chosen = torch.randint(len(intervention.reference), (len(self.x),), generator=generator)
                self._wanted[_source(intervention)] = (intervention.reference, chosen, set())
            self._wanted[_source(intervention)][2].add(site.name)
        elif isinstance(intervention, Mean):
            self._require_inputs(intervention.reference, None, intervention)
        elif isinstance(intervention, Quantize):
            self._code(selection, site, intervention)

    def _prepare_means(self, joints: Sequence[Joint]) -> None:
        wanted: dict[int, tuple[Tensor, set[str]]] = {}
        for joint in joints:
            for selection, intervention in joint.items():
                if isinstance(intervention, Mean):
                    wanted.setdefault(id(intervention.reference), (intervention.reference, set()))[1].add(
                        selection.site
                    )
        for key, (reference, names) in wanted.items():
            totals: dict[str, Tensor] = {}
            for rows in torch.arange(len(reference)).split(_ROWS):
                eps = None if self.eps is None else self.eps[rows % len(self.x)]
                for name, value in self._activations(reference[rows].to(self.x), eps, names).items():
                    totals[name] = totals.get(name, torch.zeros(())).to(value) + value.sum(0)
            for name, total in totals.items():
                self._means[key, name] = self._units_first(total.unsqueeze(0) / len(reference), name)

    def rows(self, rows: slice) -> Callable[[Selection, Intervention], Replacement]:
        """The replacements for one chunk of examples: a function of selection and intervention."""
        eps = None if self.eps is None else self.eps[rows]
        source_acts: dict[int, dict[str, Tensor]] = {}
        for key, (source, chosen, names) in self._wanted.items():
            if chosen is not None:
                batch = source[chosen[rows].to(source.device)]
            elif len(source) > 1 or eps is not None:  # under noise one donor for all is as many as there are draws
                batch = source.expand(len(self.x), *source.shape[1:])[rows]
            else:
                batch = source
            values = self._activations(batch.to(self.x), eps, names)
            source_acts[key] = {name: self._units_first(value, name) for name, value in values.items()}

        def resolve(selection: Selection, intervention: Intervention) -> Replacement:
            return self._resolve(selection, intervention, rows, source_acts)

        return resolve

    def _resolve(
        self, selection: Selection, intervention: Intervention, rows: slice, source_acts: dict[int, dict[str, Tensor]]
    ) -> Replacement:
        match intervention:
            case Set(value):
                return Replacement(None, self._chunk(value, selection, rows))
            case Add(delta):
                return Replacement(1.0, self._chunk(delta, selection, rows))
            case Scale(factor):
                return Replacement(float(factor), 0.0)
            case Zero():
                return Replacement(None, 0.0)
            case Swap() | Resample():
                donor = source_acts[_source(intervention)][selection.site]
                return Replacement(None, selected(donor, selection))
            case Mean(reference):
                return Replacement(None, selected(self._means[id(reference), selection.site], selection))
            case Noise(sd, seed):
                grid = self.sites[selection.site].grid
                noise = torch.stack([_drawn(seed, unit, rows, grid) for unit in self.sites.units(selection)], dim=1)
                return Replacement(1.0, _at_position(sd * noise.to(self.x), selection))
            case Quantize():
                return Replacement(None, self._code(selection, self.sites[selection.site], intervention))
        raise InterventionError(f"the engine does not know {type(intervention).__name__}.")

    def _activations(self, x: Tensor, eps: Tensor | None, names: set[str]) -> dict[str, Tensor]:
        paths = {name: self.vae.layout(self.x).paths[name] for name in names}
        with torch.no_grad():
            clean = clean_run(self.vae, x, eps, paths=set(paths.values()))
        return {name: clean.outputs[path] for name, path in paths.items()}

    def _units_first(self, activation: Tensor, name: str) -> Tensor:
        return activation.movedim(self.sites[name].axis, 1)

    def _chunk(self, value: float | Tensor, selection: Selection, rows: slice) -> float | Tensor:
        if not isinstance(value, Tensor):
            return float(value)
        full = self._shape(selection, self.sites[selection.site], len(self.x))
        per_example = value.ndim == len(full) and len(value) == len(self.x) > 1
        return value[rows].to(self.x) if per_example else value.to(self.x)

    def _shape(self, selection: Selection, site: Site, n: int) -> tuple[int, ...]:
        grid = site.grid if selection.position is None else ()
        return (n, site.n_units if selection.indices is None else len(selection.indices), *grid)

    def _require_broadcast(self, value: Tensor, selection: Selection, site: Site, intervention: Intervention) -> None:
        shape = self._shape(selection, site, len(self.x))
        try:
            fits = torch.broadcast_shapes(tuple(value.shape), shape) == shape
        except RuntimeError:
            fits = False
        if not fits:
            raise InterventionError(
                f"{intervention!r} does not fit {selection}: its activation has shape {shape} "
                f"([n, units{'' if selection.position else ', ...'}])."
            )

    def _require_inputs(self, batch: Tensor, lengths: tuple[int, ...] | None, intervention: Intervention) -> None:
        if tuple(batch.shape[1:]) != tuple(self.x.shape[1:]) or (lengths is not None and len(batch) not in lengths):
            wanted = f"[{' or '.join(map(str, lengths)) if lengths else 'm'}, {', '.join(map(str, self.x.shape[1:]))}]"
            raise InterventionError(f"{intervention!r} needs inputs of shape {wanted}, got {tuple(batch.shape)}.")

    def _code(self, selection: Selection, site: Site, intervention: Quantize) -> Tensor:
        codebook = self.vae.adapter.codebook
        if codebook is None or site.name != "latent.z":
            why = "this VAE has no codebook" if codebook is None else f"it acts on latent.z, not {site.name}"
            raise InterventionError(
                f"{intervention!r} does not apply: {why}. Pass codebook= to nv.adapt for a discrete latent."
            )
        if intervention.code >= len(codebook) or codebook.shape[1] != site.n_units:
            raise InterventionError(
                f"{intervention!r} does not fit a codebook of shape {tuple(codebook.shape)} and {site.n_units} latent channels."
            )
        row = codebook[intervention.code].detach().to(self.x).view(1, -1, *([1] * len(site.grid)))
        return selected(row.expand(1, -1, *site.grid), selection)


def _source(intervention: Swap | Resample) -> int:
    """What tells apart the inputs that activations are swapped in from."""
    return id(intervention.source) if isinstance(intervention, Swap) else id(intervention)


def _drawn(seed: int, unit: Unit, rows: slice, grid: tuple[int, ...]) -> Tensor:
    """Noise of one unit for some examples, `[n, *grid]`: of its own, whichever selection it is part of and whatever rows run at once."""
    first, last = rows.start // _ROWS, (rows.stop - 1) // _ROWS
    parts = []
    for block in range(first, last + 1):
        digest = hashlib.sha256(f"{seed} {unit} {block}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))
        parts.append(torch.randn(_ROWS, *grid, generator=generator, dtype=torch.float32))
    return torch.cat(parts)[rows.start - first * _ROWS :][: rows.stop - rows.start]


def selected(activation: Tensor, selection: Selection) -> Tensor:
    """Of an activation `[n, units, ...]`, the units and the position that are selected: `[n, units, ...]` or `[n, units]`."""
    indices = selection.indices
    if indices is None:
        return _at_position(activation, selection)
    # One unit as a view: a plan of a thousand units asks for a thousand of them a chunk.
    units = activation[:, indices[0] : indices[0] + 1] if len(indices) == 1 else activation[:, list(indices)]
    return _at_position(units, selection)


def _at_position(units: Tensor, selection: Selection) -> Tensor:
    at: tuple[Any, ...] = (slice(None), slice(None), *(selection.position or ()))
    return units[at]
