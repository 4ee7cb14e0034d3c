"""Runs plans of interventions in few traces: chunked, suffix only, with the readout reduced inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from nnsight_vae.arguments import require, require_readout
from nnsight_vae.diagnosis import first_not_finite
from nnsight_vae.donors import Donors, Joint
from nnsight_vae.errors import InterventionError, ReadoutError
from nnsight_vae.groups import Block, Group, by_sites
from nnsight_vae.inputs import require_noise
from nnsight_vae.interventions import Intervention
from nnsight_vae.progress import Advance
from nnsight_vae.reading import Readout, reads as reads_of
from nnsight_vae.runs import CleanRun, Write, clean_run, needed_for, replace_event, run_from, trace_events
from nnsight_vae.sites import Key
from nnsight_vae.vae import VAE
from nnsight_vae.wording import shapes
from nnsight_vae.writes import Resolved, Rows, writes_of

# Larger activations fall out of the allocator's reuse and page-fault on CPU; smaller ones waste per-trace overhead.
CHUNK_BYTES = 8 * 2**20
MIN_ROWS = 16
MAX_EXAMPLES = (
    64  # of which clean runs are kept at once: more are 2 % faster where examples are small, and take their memory
)

K = TypeVar("K", bound=Key)  # a mapping is invariant in its keys: {Unit: ...} is no Mapping[Key, ...]


class Output(NamedTuple):
    """What a VAE makes of a batch under interventions."""

    reconstruction: Float[Tensor, "n *image"]
    mu: Float[Tensor, "n *latent"]
    logvar: Float[Tensor, "n *latent"]
    z: Float[Tensor, "n *latent"]

    def __repr__(self) -> str:
        return f"Output({shapes(self._asdict())})"


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
    joint = joint_of(vae, interventions)
    donors = Donors(vae, [joint], x, eps)
    layout, n = vae.layout(x), len(x)
    firings = layout.firings
    kept: dict[str, Tensor] = {}

    def keep(path: str) -> Callable[[], None]:
        return lambda: kept.__setitem__(path, vae.envoy_at(path).output)

    with torch.no_grad():
        writes = writes_of(layout, [joint], donors.rows(slice(0, n)), Rows.every(n))
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
    progress: Advance = None,
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
        InterventionError: a result is not finite; names the intervention, and the first unit that is not.
    """
    require_readout(read)
    x, eps = checked_batch(vae, x, eps)
    joints = [joint_of(vae, entry) for entry in plan]
    donors = Donors(vae, joints, x, eps)
    result = x.new_empty(len(joints), len(x), len(read.names))
    if not joints:
        return result
    with torch.no_grad():
        groups = [Group.of(vae, x, eps, joints, members, reads_of(read)) for members in by_sites(joints)]
        until = max(group.until for group in groups)
        latest = max((group.start for group in groups), key=lambda start: needed_for(vae, x, start))
        for rows in example_chunks(vae, x):
            clean = clean_run(vae, x[rows], None if eps is None else eps[rows], until=until)
            for members, examples, values in Sweep(clean, read, latest).results(groups, donors.rows(rows)):
                result = result.to(values.dtype)  # a readout may compute in more digits than the model
                result[members, rows.start + examples] = values
                if progress is not None:
                    progress(len(values))
            del clean  # before the next one is made
    _refuse_nonfinite(vae, x, eps, result, joints, donors)
    return result


class Sweep:
    """The runs of groups of interventions on one clean run, kept as far as all of them need."""

    def __init__(self, clean: CleanRun, read: Readout, latest: str | None) -> None:
        self.clean, self.read, self.reads, self.latest = clean, read, reads_of(read), latest

    @cached_property
    def unchanged(self) -> Float[Tensor, "n target"]:
        """The readout of the clean run, which was kept up to the latest start."""
        return _reduced(run_from(self.clean, self.latest, None, {}, self.read, self.reads), self.read, len(self.clean))

    def results(self, groups: Sequence[Group], resolved: Resolved) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Positions in the plan, examples of the chunk and readout of some rows, until all groups are through."""
        for group in groups:
            for block in group.blocks(self.clean, resolved, CHUNK_BYTES):
                yield from self._of(block, group.start)

    def _of(self, block: Block, start: str | None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The rows of a block, few enough at a time to fit."""
        plan = torch.tensor(block.members, device=block.alive.device)
        dead = Rows(*(~block.alive).nonzero(as_tuple=True))
        if len(dead.members):
            yield plan[dead.members], dead.examples, self.unchanged[dead.examples]
        alive = Rows(*block.alive.nonzero(as_tuple=True))
        parts = -(-len(alive.members) // row_capacity(self.clean.vae, self.clean.x, start))
        for members, examples in zip(*(index.tensor_split(parts) for index in alive), strict=True) if parts else ():
            rows = Rows(members, examples)
            values = run_from(self.clean, start, examples, block.writes(rows), self.read, self.reads)
            yield plan[members], examples, _reduced(values, self.read, len(examples))


def baseline(
    vae: VAE, x: Float[Tensor, "n *image"], read: Readout, *, eps: Tensor | None = None
) -> Float[Tensor, "n target"]:
    """The readout without interventions, `[n, len(read.names)]`, chunked like `run_interventions`.

    Raises:
        ReadoutError: it has the wrong shape, or is not finite; names the first unit that is not.
    """
    require_readout(read)
    x, eps = checked_batch(vae, x, eps)
    path = vae.layout(x).paths[reads_of(read)]
    parts = []
    with torch.no_grad():
        for rows in example_chunks(vae, x):
            clean = clean_run(vae, x[rows], None if eps is None else eps[rows], paths=[path])
            parts.append(_reduced(read(clean.outputs[path].contiguous()), read, len(clean)))
        result = torch.cat(parts)
        if not bool(torch.isfinite(result).all()):
            first = first_not_finite(vae, x, eps, example_chunks(vae, x))
            why = "all activations are finite, so the readout itself makes it so" if first is None else str(first)
            raise ReadoutError(f"the readout {type(read).__name__} is NaN or infinite without any intervention: {why}.")
    return result


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
                parts[site].append(clean.outputs[path].contiguous())
    return {site: torch.cat(chunks) for site, chunks in parts.items()}


def checked_batch(vae: VAE, x: Tensor, eps: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """x and eps on the model's device, refused with a reason where the model cannot run them."""
    require(vae)
    x = vae.checked(x)
    if eps is None:
        return x, None
    require_noise(eps, len(x), vae.layout(x).sites["latent.mu"].shape)
    return x, eps.to(x)


def joint_of(vae: VAE, interventions: Mapping[K, Intervention]) -> Joint:
    """What to do to which units; refused where two keys name one unit, for what should come first would be a guess.

    Raises:
        SiteError, InterventionError: a key names no unit, two name the same, a value is no intervention, or there is none at all.
    """
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


def example_chunks(vae: VAE, x: Tensor) -> list[slice]:
    """Slices of a batch whose largest activation stays within `CHUNK_BYTES`, of `MAX_EXAMPLES` at most."""
    step = min(MAX_EXAMPLES, row_capacity(vae, x, None))
    return [slice(i, min(i + step, len(x))) for i in range(0, len(x), step)]


def row_capacity(vae: VAE, x: Tensor, start: str | None) -> int:
    """Rows whose largest activation from a module on (None: the input) stays within `CHUNK_BYTES`."""
    firings = vae.layout(x).firings
    begin = -1 if start is None else firings[start].finished
    sizes = [torch.Size(f.shape[1:]).numel() for f in firings.values() if f.shape and f.finished >= begin]
    return max(MIN_ROWS, CHUNK_BYTES // (max(sizes) * x.element_size()))


def _reduced(values: Tensor, read: Readout, rows: int) -> Float[Tensor, "rows target"]:
    expected = (rows, len(read.names))
    if not isinstance(values, Tensor) or tuple(values.shape) != expected:
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ReadoutError(
            f"the readout {type(read).__name__} returned {got}, expected {expected}: one number an example and name."
        )
    return values.detach()


def _refuse_nonfinite(
    vae: VAE, x: Tensor, eps: Tensor | None, result: Tensor, joints: Sequence[Joint], donors: Donors
) -> None:
    bad = (~torch.isfinite(result)).flatten(1).any(1).nonzero().flatten().tolist()
    if not bad:
        return
    joint, layout, chunks = joints[bad[0]], vae.layout(x), example_chunks(vae, x)

    def writes(rows: slice) -> dict[str, Write]:
        return writes_of(layout, [joint], donors.rows(rows), Rows.every(rows.stop - rows.start))

    with torch.no_grad():
        clean = first_not_finite(vae, x, eps, chunks)
        first = clean or first_not_finite(vae, x, eps, chunks, writes)
    where = "all activations are finite, so the readout itself makes it so" if first is None else str(first)
    named = "; ".join(f"{selection} <- {intervention!r}" for selection, intervention in joint.items())
    raise InterventionError(
        f"the readout is NaN or infinite under {len(bad)} of {len(joints)} interventions, first {named}. "
        f"{'Without any intervention' if clean else 'There'} {where}."
    )
