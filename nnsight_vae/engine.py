"""Runs plans of interventions in few traces: chunked, suffix only, with the readout reduced inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from nnsight_vae.arguments import require, require_readout
from nnsight_vae.donors import Donors, Joint
from nnsight_vae.errors import InterventionError, ReadoutError
from nnsight_vae.inputs import require_noise
from nnsight_vae.interventions import Intervention
from nnsight_vae.readouts import Readout, reads as reads_of
from nnsight_vae.runs import clean_run, needed_for, replace_event, run_from, start_for, trace_events
from nnsight_vae.sites import Key
from nnsight_vae.vae import VAE
from nnsight_vae.writes import writes_of

# Larger activations fall out of the allocator's reuse and page-fault on CPU; smaller ones waste per-trace overhead.
CHUNK_BYTES = 8 * 2**20
MIN_ROWS = 16

K = TypeVar("K", bound=Key)  # a mapping is invariant in its keys: {Unit: ...} is no Mapping[Key, ...]


class Output(NamedTuple):
    """What a VAE makes of a batch under interventions."""

    reconstruction: Float[Tensor, "n *image"]
    mu: Float[Tensor, "n *latent"]
    logvar: Float[Tensor, "n *latent"]
    z: Float[Tensor, "n *latent"]


def intervene(
    vae: VAE, x: Float[Tensor, "n *image"], interventions: Mapping[K, Intervention], *, eps: Tensor | None = None
) -> Output:
    """Run a VAE with interventions, all applied at once.

    Args:
        vae: the model.
        x: inputs `[n, *image]`.
        interventions: key (`"latent.z[3]"`, `"encoder.4[0:8]"`, a `Unit`, a `Site`) -> `Set`, `Add`, `Swap`, ...
        eps: reparameterisation noise `[n, *latent]`; None runs at the posterior mean.

    Returns: `Output(reconstruction, mu, logvar, z)` under the interventions.

    Raises:
        SiteError: a key names no unit of this VAE.
        InterventionError: an intervention does not fit its site, or two name the same unit.
        DataError: x or eps cannot be run.

    Example:
        >>> import nnsight_vae as nv
        >>> from nnsight_vae.models import MLPVAE
        >>> vae = nv.VAE(MLPVAE(image_shape=(1, 8, 8), latent=3))
        >>> out = intervene(vae, torch.rand(2, 1, 8, 8), {"latent.z[1]": nv.Set(2.0)})
        >>> out.z[:, 1].tolist()
        [2.0, 2.0]
    """
    x, eps = checked_batch(vae, x, eps)
    joint = _joint(vae, interventions)
    donors = Donors(vae, [joint], x, eps)
    layout, n = vae.layout(x), len(x)
    firings = layout.firings
    kept: dict[str, Tensor] = {}

    def keep(path: str) -> Callable[[], None]:
        return lambda: kept.__setitem__(path, vae.envoy_at(path).output)

    with torch.no_grad():
        writes = writes_of(layout, [joint], donors.rows(slice(0, n)), n)
        events = [(firings[path].finished, replace_event(vae, path, write)) for path, write in writes.items()]
        paths = ("tap_output", "latent.mu", "latent.logvar", "latent.z")
        events += [
            (firings[path].finished, keep(path)) for path in paths
        ]  # stable sort: after the write at the same site
        trace_events(vae, "__call__", (x,), events, eps=eps)
    return Output(*(kept[path] for path in paths))


def run_interventions(
    vae: VAE,
    x: Float[Tensor, "n *image"],
    plan: Sequence[Mapping[K, Intervention]],
    read: Readout,
    *,
    eps: Tensor | None = None,
    progress: Callable[[int], None] | None = None,
) -> Float[Tensor, "plan n target"]:
    """The readout under each of a list of joint interventions.

    Interventions that share their sites run together: the batch grows at the earliest site, so the cost is that of the suffix
    below it, in chunks bounded by `CHUNK_BYTES`, whatever the length of the plan or the number of examples.

    Args:
        vae: the model.
        x: inputs `[n, *image]`.
        plan: each entry is one joint intervention, applied to every example.
        read: the readout; `read.reads` names the site it reads (`"output"` unless it says otherwise).
        eps: reparameterisation noise `[n, *latent]`, the same in every run; None runs at the posterior mean.
        progress: called with the number of (intervention, example) rows just finished.

    Returns: `[len(plan), n, len(read.names)]`, on the model's device, without gradients.

    Raises:
        SiteError, InterventionError, DataError: before any work, for a key, an intervention or a batch that does not fit.
        ReadoutError: the readout returns the wrong shape.
        InterventionError: a result is not finite; names the intervention.
    """
    require_readout(read)
    x, eps = checked_batch(vae, x, eps)
    joints = [_joint(vae, entry) for entry in plan]
    donors = Donors(vae, joints, x, eps)
    layout, reads = vae.layout(x), reads_of(read)
    result = x.new_empty(len(joints), len(x), len(read.names))
    groups = [_Group.of(vae, x, joints, members, reads) for members in _by_sites(joints)]
    until = max((needed_for(vae, x, group.start) for group in groups), default=-1)
    with torch.no_grad():
        for rows in example_chunks(vae, x):
            clean = clean_run(vae, x[rows], None if eps is None else eps[rows], until=until)
            resolved = donors.rows(rows)
            for group in groups:
                for chunk in group.chunks(len(clean)):
                    writes = writes_of(layout, [joints[m] for m in chunk], resolved, len(clean))
                    values = run_from(clean, group.start, len(chunk), writes, read, reads)
                    values = _reduced(values, read, len(chunk), len(clean))
                    result = result.to(values.dtype)  # a readout may compute in more digits than the model
                    result[chunk, rows] = values
                    if progress is not None:
                        progress(len(chunk) * len(clean))
    _refuse_nonfinite(result, joints)
    return result


def baseline(
    vae: VAE, x: Float[Tensor, "n *image"], read: Readout, *, eps: Tensor | None = None
) -> Float[Tensor, "n target"]:
    """The readout without interventions, `[n, len(read.names)]`, chunked like `run_interventions`."""
    require_readout(read)
    x, eps = checked_batch(vae, x, eps)
    path = vae.layout(x).paths[reads_of(read)]
    parts = []
    with torch.no_grad():
        for rows in example_chunks(vae, x):
            clean = clean_run(vae, x[rows], None if eps is None else eps[rows], paths=[path])
            parts.append(_reduced(read(clean.outputs[path]), read, 1, len(clean))[0])
    return torch.cat(parts)


def activations(
    vae: VAE, x: Float[Tensor, "n *image"], sites: Sequence[str], *, eps: Tensor | None = None
) -> dict[str, Tensor]:
    """The activations of some sites in a run without interventions: site -> `[n, ...]`."""
    x, eps = checked_batch(vae, x, eps)
    layout = vae.layout(x)
    paths = {site: layout.paths[layout.sites[site].name] for site in sites}
    parts: dict[str, list[Tensor]] = {site: [] for site in sites}
    with torch.no_grad():
        for rows in example_chunks(vae, x):
            clean = clean_run(vae, x[rows], None if eps is None else eps[rows], paths=set(paths.values()))
            for site, path in paths.items():
                parts[site].append(clean.outputs[path])
    return {site: torch.cat(chunks) for site, chunks in parts.items()}


def checked_batch(vae: VAE, x: Tensor, eps: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """x and eps on the model's device, refused with a reason where the model cannot run them."""
    require(vae)
    x = vae.checked(x)
    if eps is None:
        return x, None
    require_noise(eps, len(x), vae.layout(x).sites["latent.mu"].shape)
    return x, eps.to(x)


def _joint(vae: VAE, interventions: Mapping[K, Intervention]) -> Joint:
    """What to do to which units; refused where two keys name one unit, for what should come first would be a guess."""
    if not isinstance(interventions, Mapping):
        raise InterventionError(
            f"interventions are a mapping such as {{'latent.z[3]': nv.Set(2.0)}}, got a {type(interventions).__name__}."
        )
    for key, intervention in interventions.items():
        if not isinstance(intervention, Intervention):
            raise InterventionError(
                f"{key}: expected an intervention such as nv.Set(2.0), got {type(intervention).__name__}."
            )
    selections = [vae.sites.select(key) for key in interventions]
    vae.sites.require_disjoint(selections)
    joint = dict(zip(selections, interventions.values(), strict=True))
    if not joint:
        raise InterventionError("an empty set of interventions: name at least one site or unit.")
    return joint


def _by_sites(joints: Sequence[Joint]) -> list[list[int]]:
    """Positions in the plan whose interventions touch the same sites, so that they can share traces."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for i, joint in enumerate(joints):
        groups.setdefault(tuple(sorted({selection.site for selection in joint})), []).append(i)
    return list(groups.values())


@dataclass(frozen=True)
class _Group:
    """Interventions that share their sites, and so where their runs start.

    Attributes:
        members: their positions in the plan.
        start: path of the module the batch grows at; None is the input.
        capacity: rows that fit below that point.
    """

    members: list[int]
    start: str | None
    capacity: int

    @classmethod
    def of(cls, vae: VAE, x: Tensor, joints: Sequence[Joint], members: list[int], reads: str) -> _Group:
        layout = vae.layout(x)
        sites = sorted((selection.site for selection in joints[members[0]]), key=layout.sites.order)
        if layout.sites.order(sites[-1]) > layout.sites.order(reads):
            raise InterventionError(
                f"the readout reads {reads!r}, which comes before {sites[-1]!r}; nothing there can change it."
            )
        start = start_for(vae, x, layout.paths[sites[0]], reads)
        begin = -1 if start is None else layout.firings[start].finished
        largest = max(_row_bytes(f.shape, x) for f in layout.firings.values() if f.shape and f.finished >= begin)
        return cls(members, start, max(MIN_ROWS, CHUNK_BYTES // largest))

    def chunks(self, n: int) -> Iterator[list[int]]:
        """Members that run together on n examples."""
        step = max(1, self.capacity // n)
        for i in range(0, len(self.members), step):
            yield self.members[i : i + step]


def example_chunks(vae: VAE, x: Tensor) -> list[slice]:
    """Slices of a batch whose largest activation stays within `CHUNK_BYTES`."""
    largest = max(_row_bytes(f.shape, x) for f in vae.layout(x).firings.values() if f.shape)
    step = max(MIN_ROWS, CHUNK_BYTES // largest)
    return [slice(i, min(i + step, len(x))) for i in range(0, len(x), step)]


def _row_bytes(shape: tuple[int, ...], x: Tensor) -> int:
    return int(torch.Size(shape[1:]).numel()) * x.element_size()


def _reduced(values: Tensor, read: Readout, copies: int, n: int) -> Tensor:
    expected = (copies * n, len(read.names))
    if not isinstance(values, Tensor) or tuple(values.shape) != expected:
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ReadoutError(
            f"the readout {type(read).__name__} returned {got}, expected {expected}: one number an example and name."
        )
    return values.detach().view(copies, n, -1)


def _refuse_nonfinite(result: Tensor, joints: Sequence[Joint]) -> None:
    bad = (~torch.isfinite(result)).flatten(1).any(1).nonzero().flatten().tolist()
    if bad:
        named = "; ".join(f"{selection} <- {intervention!r}" for selection, intervention in joints[bad[0]].items())
        raise InterventionError(
            f"the readout is NaN or infinite under {len(bad)} of {len(joints)} interventions, first {named}."
        )
