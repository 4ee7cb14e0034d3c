"""Routes: how far the change of one unit is followed by hand, so that the model runs again from there on only.

From its site a unit's change often passes modules that act on each element or channel alone (activations, norms in eval mode,
reshapes) before the next linear layer mixes it with the others, and there it adds what the layer makes of one changed port.
All that is known from the clean run. Whether the model is built that way (nothing else reads the site, no function works in
between) is tried once a site, with random activations, against a run that starts at the site itself, and remembered.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nnsight_vae.layout import Layout
from nnsight_vae.probe import ROWS, Firing
from nnsight_vae.runs import Write, clean_run, repeat, run_from, start_for
from nnsight_vae.sites import Site
from nnsight_vae.updates import LinearLayer, add_response, fits
from nnsight_vae.vae import VAE

_ELEMENTWISE = {
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh, nn.Softplus,
    nn.Softsign, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.LogSigmoid, nn.Threshold,
}  # fmt: skip
_BATCH_NORMS = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}
_LAYERS = {
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
}  # fmt: skip
_SCALES = (1.0, 10.0)  # of the random activations of a trial, in units of the site's largest: near ones and far ones
_SLACK = (
    1000  # units in the last place that a sum over all units may be off by; what does not hold is off by 1e6 of them
)


class _Lost(Exception):  # not an error: the model is run from further up instead
    """A reshape tears a unit apart."""


@dataclass(frozen=True)
class Route:
    """The way of one unit's change from its site to where the model runs on.

    Attributes:
        site: where the unit is.
        steps: modules that it passes alone.
        layer: the linear layer whose output it then changes; None where the run starts before one.
    """

    site: Site
    steps: tuple[Firing, ...] = ()
    layer: Firing | None = None

    @property
    def linear(self) -> LinearLayer | None:
        """The linear layer itself."""
        return None if self.layer is None else self.layer.module  # type: ignore[return-value]

    def end(self, layout: Layout) -> str:
        """Path of the module whose output is written to."""
        last = self.layer or (self.steps[-1] if self.steps else None)
        return layout.paths[self.site.name] if last is None else last.path

    @property
    def positions(self) -> int:
        """The most numbers that a unit of one example is on the way."""
        shapes = [step.taken[2:] for step in (*self.steps, self.layer) if step is not None and step.taken is not None]
        return max(torch.Size(shape).numel() for shape in (self.site.grid, *shapes))

    def follow(
        self, units: Int[Tensor, " k"], values: Float[Tensor, "k n *grid"]
    ) -> tuple[Int[Tensor, " k"], Float[Tensor, "k n ports *end"]]:
        """What unit k's values become at the end of the route, and the first of the neighbouring ports that hold them."""
        first, values, shape = units, values.unsqueeze(2), self.site.shape
        for step in (*self.steps, self.layer):
            if step is None or step.taken is None:
                continue
            if step.taken[1:] != shape:
                first, values = self._reshaped(first, values, step.taken[1:])
            shape = step.taken[1:]
            if step is not self.layer and not step.passes:
                values = _through(step.module, first, values)
        if self.layer is None and self.steps and self.steps[-1].shape and self.steps[-1].shape[1:] != shape:
            first, values = self._reshaped(first, values, self.steps[-1].shape[1:])
        return first, values

    def _reshaped(self, first: Tensor, values: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """The ports in the same memory read as another shape `[channels, *grid]`."""
        per_port, width = torch.Size(values.shape[3:]).numel(), torch.Size(shape[1:]).numel()
        flat, offset = values.flatten(2), first * per_port
        span = flat.shape[2]
        if self.site.axis == 1 and span % width == 0 and not bool((offset % width).any()):
            return offset // width, flat.unflatten(2, (span // width, *shape[1:]))
        if self.site.axis != 1 or width % span:
            raise _Lost
        # Part of a channel. Nothing else of it changes, so the rest may be anything that is the same before and after.
        within = (offset % width)[:, None] + torch.arange(span, device=first.device)
        padded = flat.new_zeros(*flat.shape[:2], width).scatter_(2, within[:, None].expand_as(flat), flat)
        return offset // width, padded.unflatten(2, (1, *shape[1:]))

    def write(self, first: Int[Tensor, " r"], before: Tensor, after: Tensor) -> Write:
        """The write at the route's end, for rows of what `follow` returned: `[r, ports, *end]`."""
        layer = self.linear
        if layer is not None:
            return lambda output: add_response(layer, output, first, after - before)

        def replace(activation: Tensor) -> Tensor:
            rows = torch.arange(len(first), device=first.device)[:, None]
            ports = first[:, None] + torch.arange(after.shape[1], device=first.device)
            activation.movedim(self.site.axis, 1)[rows, ports] = after
            return activation

        return replace

    def hooked(self, layout: Layout) -> bool:
        """Whether hooks of the user's watch or change what happens from the site to the end."""
        begin, end = (layout.firings[path] for path in (layout.paths[self.site.name], self.end(layout)))
        on_the_way = (f for f in layout.firings.values() if f.finished >= begin.finished and f.started <= end.started)
        return any(f.module._forward_hooks or f.module._forward_pre_hooks for f in on_the_way)


@torch.no_grad()
def route_for(vae: VAE, x: Tensor, eps: Tensor | None, site: str, reads: str = "output") -> Route:
    """The longest route from a site that holds in this model; where none does, one that ends at the site.

    Args:
        vae: the model.
        x: inputs like those that will run.
        eps: whether there is noise.
        site: where units are patched.
        reads: the site that is read in the end.
    """
    plain = Route(vae.layout(x).sites[site])
    key = (tuple(x.shape[1:]), f"{site}->{reads}", eps is None)
    if torch.is_autocast_enabled(x.device.type) or x.dtype not in (torch.float32, torch.float64):
        return plain  # a sum of rounded parts is rounded differently
    if key not in vae._routes:
        vae._routes[key] = _tried(vae, x, eps, list(_candidates(vae.layout(x), plain, reads)), reads)
    route = vae._routes[key]
    return plain if route.hooked(vae.layout(x)) else route


def _candidates(layout: Layout, plain: Route, reads: str) -> Iterator[Route]:
    """Routes along the modules that hand on the site's memory, longest first."""
    current = layout.firings[layout.paths[plain.site.name]]
    last = layout.firings[layout.paths[reads]].finished
    found = [plain]
    while (reader := _reader(layout, current)) is not None and reader.finished <= last:
        route = found[-1]
        if type(reader.module) in _LAYERS:
            found.append(Route(route.site, route.steps, reader))
            break
        if not (
            reader.passes
            or type(reader.module) in _ELEMENTWISE
            or (plain.site.axis == 1 and _of_channels(reader.module))
        ):
            break
        found.append(Route(route.site, (*route.steps, reader)))
        current = reader
    return reversed(found)


def _reader(layout: Layout, current: Firing) -> Firing | None:
    for firing in layout.firings.values():
        if firing.source == current.path and firing.calls == 1 and firing.started > current.finished:
            leaf = next(firing.module.children(), None) is None
            if leaf and firing.shape is not None and firing.taken is not None and firing.taken[0] == ROWS:
                return firing
    return None


def _tried(vae: VAE, x: Tensor, eps: Tensor | None, candidates: list[Route], reads: str) -> Route:
    *longer, plain = candidates
    if not longer:
        return plain
    layout, generator = vae.layout(x), torch.Generator().manual_seed(0)
    noise = None if eps is None else torch.randn(2, *eps.shape[1:], generator=generator).to(eps)
    small = clean_run(vae, repeat(x[:1], 2), noise)
    rows = torch.arange(2, device=x.device).repeat(len(_SCALES))
    before = small.at(plain.site.name)[rows]
    scales = torch.tensor(_SCALES).repeat_interleave(2).view(-1, *[1] * len(plain.site.shape)).to(before)
    size = max(1e-3, float(before.abs().max()))
    after = before + scales * size * torch.randn(before.shape, generator=generator).to(before)
    seen: dict[str, Tensor] = {}

    def run(path: str, value: Tensor, watched: tuple[str, ...] = ()) -> Tensor:
        def watch(path: str) -> Write:
            return lambda value: seen.setdefault(path, value).clone()  # code in between may write into what goes on

        writes = {path: lambda _: value.clone(), **{other: watch(other) for other in watched}}
        return run_from(small, start_for(vae, x, path, reads), rows, writes, lambda out: out.clone(), reads)

    ends = [route.end(layout) for route in longer]
    expected = run(plain.end(layout), after, tuple(ends))
    for route, end in zip(longer, ends, strict=True):
        if route.layer is not None and start_for(vae, x, end, reads) != end:
            continue  # the run would start further up all the same
        try:
            output = _all_units(route, small.outputs[end][rows], before, after)
        except _Lost:
            continue
        if _close(output, seen[end], _SLACK) and _close(run(end, seen[end]), expected, 32):
            return route
    return plain


def _all_units(route: Route, output: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """The output at the end of a route once every unit has changed, one after the other."""
    units = torch.arange(route.site.n_units, device=output.device)
    sides = [tensor.movedim(route.site.axis, 0) for tensor in (before, after)]  # [k, rows, *grid]
    (first, old), (_, new) = (route.follow(units, side) for side in sides)
    layer = route.linear
    if layer is None:
        reads = old[0, 0].numel() == sides[0][0, 0].numel()  # a part of a channel cannot be written alone
    elif isinstance(layer, nn.Linear):
        reads = (route.site.axis != 1 or old.ndim == 3) and fits(layer, first, old.shape[2])
    else:
        reads = route.site.axis == 1 and old.ndim == layer.weight.ndim + 1 and fits(layer, first, old.shape[2])
    if not reads:
        raise _Lost
    for u in range(len(units)):
        output = route.write(first[u].expand(len(output)), old[u], new[u])(output)
    return output


def _close(one: Tensor, other: Tensor, places: int) -> bool:
    """Whether two outcomes of a trial are the same; far activations may overflow, in both alike, near ones may not."""
    finite = torch.isfinite(other)
    if one.shape != other.shape or not bool(finite[:2].all()):
        return False
    slack = places * torch.finfo(other.dtype).eps * max(1e-3, float(other[finite].abs().max()))
    return bool(torch.where(finite, (one - other).abs() <= slack, ~torch.isfinite(one)).all())


def _of_channels(module: nn.Module) -> bool:
    return type(module) is nn.PReLU or (type(module) in _BATCH_NORMS and module.running_mean is not None)


def _through(module: nn.Module, first: Tensor, values: Tensor) -> Tensor:
    """What a module makes of some of its channels, `[k, n, ports, *grid]`. Its `forward` slot is nnsight's, so its class's is called."""
    if type(module) in _ELEMENTWISE:
        return type(module).forward(module, values)
    channels = first[:, None] + torch.arange(values.shape[2], device=first.device)

    def of(parameter: Tensor) -> Tensor:
        chosen = parameter[channels] if len(parameter) > 1 else parameter.expand(channels.shape)
        return chosen.view(len(first), 1, -1, *[1] * (values.ndim - 3))

    if isinstance(module, nn.PReLU):
        return torch.where(values > 0, values, of(module.weight) * values)
    norm: Any = module
    normal = (values - of(norm.running_mean)) * torch.rsqrt(of(norm.running_var) + norm.eps)
    return normal * of(norm.weight) + of(norm.bias) if norm.affine else normal
