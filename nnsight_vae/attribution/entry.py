"""The first layer of an encoder, where it is affine: a path of inputs is a straight path of its outputs too.

The first convolution sees the image at full size, and its backward pass is about half of all that a gradient of a latent costs.
Where f(x) = g(h(x)) with h affine, the mean gradient of f along a path is that of g along the path of h, pulled back through h once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nnsight_vae.attribution.forward import CaptumForward
from nnsight_vae.probe import Firing
from nnsight_vae.runs import trace_events

_SAME = 1e-5  # relative to the largest value: rounding, and no more


@dataclass(frozen=True)
class Entry:
    """An affine first layer through which alone an input acts.

    Attributes:
        forward: the function.
        firing: the layer.
    """

    forward: CaptumForward
    firing: Firing

    @classmethod
    def find(cls, forward: CaptumForward, x: Float[Tensor, "n *shape"], b: Tensor, rows: Tensor) -> Entry | None:
        """The entry of a function, if it has one: checked on these inputs and baselines, not taken on trust."""
        layout = forward.vae.layout()
        order = sorted(layout.firings.values(), key=lambda f: f.started)
        firing = next((f for f in order if f.kind in ("conv", "linear")), None)
        if forward.of != "input" or firing is None or firing.calls != 1 or firing.shape is None:
            return None
        entry = cls(forward, firing)
        with torch.no_grad():
            at_x, at_b, between = entry.output(x), entry.output(b), entry.output((x + b) / 2)
            whole = forward(x, rows if forward.examples > 1 else None)
            affine = _same(between, (at_x + at_b) / 2)  # so is what comes before the layer
            return (
                entry if affine and _same(entry.after(at_x, b, rows), whole) else None
            )  # nor does anything go past it, or an intervention come before it

    def output(self, x: Tensor) -> Float[Tensor, "n *hidden"]:
        """The layer's output."""
        kept: list[Tensor] = []
        envoy = self.forward.vae.envoy_at(self.firing.path)
        trace_events(self.forward.vae, "__call__", (x,), [(self.firing.finished, lambda: kept.append(envoy.output))])
        return kept[0]

    def after(self, hidden: Float[Tensor, "r *hidden"], x: Tensor, rows: Int[Tensor, " r"]) -> Tensor:
        """The function with the layer's output given; x has the shape of inputs, its values do not matter."""
        envoy = self.forward.vae.envoy_at(self.firing.path)
        given = hidden.clone() if self.firing.rewritten else hidden  # in-place code must not write into a leaf
        events = [(self.firing.started, lambda: envoy.skip(given))]
        return self.forward.run(x, rows if self.forward.examples > 1 else None, events)

    def pull_back(
        self, x: Float[Tensor, "n *shape"], gradients: Float[Tensor, "n target *hidden"]
    ) -> Float[Tensor, "n target *shape"]:
        """Gradients with respect to the layer's output, as gradients with respect to its input."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            hidden = self.output(x)
        columns = gradients.unbind(1)
        pulled = [torch.autograd.grad(hidden, x, g, retain_graph=True)[0] for g in columns]
        return torch.stack(pulled, 1)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= _SAME * (1 + b.abs().max()))
