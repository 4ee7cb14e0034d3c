"""What nnsight asks of a model: how invokes share a run, what a trace serves as input and output, one trace at a time."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from nnsight import NNsight
from torch import Tensor, nn

from nnsight_vae import inputs
from nnsight_vae._nnsight import VAEBatcher, VAEEnvoy, VAEInterleaver, VAETracer, eproperty
from nnsight_vae.errors import AdapterError, NnsightVaeError
from nnsight_vae.hold import Hold
from nnsight_vae.intake import Intake
from nnsight_vae.layouts import Layouts
from nnsight_vae.wrapped import Wrapped


class Traced(NNsight):
    """A wrapped model under nnsight; `VAE` is one with a user's module inside.

    Args:
        root: the wrapper module.
        hold: on the user's module; everything runs under it.
        parameter: one of the module's, in whose dtype and on whose device it computes; None where it has none.
    """

    _batcher_class = VAEBatcher

    def __init__(self, root: Wrapped, hold: Hold, parameter: nn.Parameter | None) -> None:
        super().__init__(root, path="vae", interleaver=VAEInterleaver(), envoys=VAEEnvoy)
        # Underscored names go past Envoy.__setattr__, which would register modules in the user's tree.
        self._hold = hold
        self._layouts = Layouts(root, hold, self.interleaver)
        self._intake = Intake(parameter, root.given, self._layouts)

    def held(self) -> AbstractContextManager[None]:
        """Hold the model for one run: one thread at a time, eval mode, outside any trace that is open, flags restored."""
        return self._hold.run(self._module, self.interleaver)

    def trace(self, *inputs: Any, fn: Any = None, trace: bool = True, **kwargs: Any) -> Any:
        """Open an nnsight trace of this VAE.

        A saved activation is what its site computed, whatever the model does afterwards. A write into it, `output[:, 3] = 2.0`,
        is a write into what was saved too: `.clone().save()` keeps the value from before. The input is copied. Put
        `torch.no_grad()` on the `with` line, before the trace: inside the block it would leak into the model.

        Args:
            inputs: one batch `[n, *image]` (or `[n, *latent]` for `fn="decode"`), and conditions `[n, ...]` after it where the VAE
                takes some; none when `tracer.invoke(x)` gives them.
            fn: `None` for the whole forward, `"encode"`, `"decode"`, or any callable over the module's parts.
            trace: False runs `fn` without a block and returns what it returns.
            kwargs: `eps=` (explicit noise `[n, *latent]`), `sample=True`, and nnsight's own.

        Returns: the tracer, a context manager; values are served inside the block at `vae.<site>.output`.

        Raises:
            NnsightVaeError: a trace of this VAE is open already, or `fn` is no function of it.
            AdapterError: this VAE was unwrapped.
        """
        if self.interleaver.interleaving:
            raise NnsightVaeError(
                "this VAE is being traced already: a trace cannot open inside another trace's block. Call nv functions and "
                "vae.trace(...) outside the block, or save the values you need and use them after it."
            )
        self._hold.require_live()
        if isinstance(fn, str) and not callable(getattr(self._module, fn, None)):
            raise NnsightVaeError(f"fn={fn!r} is no function of a VAE; use 'encode', 'decode' or a callable.")
        if not trace:
            with self.held():
                return super().trace(*inputs, fn=fn, trace=False, **kwargs)
        return super().trace(*inputs, fn=fn, **{"tracer_cls": VAETracer, **kwargs})

    # What a trace serves as input and output is the tensor at the taps, so that encode and decode traces serve it too.
    @eproperty(key="tap_input.output")
    def input(self, value: Any) -> Any:
        """The batch of inputs, inside a trace."""
        return value

    @eproperty(key="tap_output.output")
    def output(self, value: Any) -> Any:
        """The reconstruction, inside a trace."""
        return value

    def _batch_size(self, *inputs: Any, **kwargs: Any) -> int:
        # Never 0 where there is an input: nnsight would take an empty batch for "the invokes will bring the inputs".
        has_rows = bool(inputs) and isinstance(inputs[0], Tensor) and inputs[0].ndim > 0
        return max(1, len(inputs[0])) if has_rows else int(bool(inputs))

    def _batch(self, invokes: list[tuple[tuple[Any, ...], dict[str, Any]]], fn: Any) -> tuple[Any, dict[str, Any]]:
        for args, kwargs in invokes:
            self._intake.call(fn, args, kwargs)
        return inputs.combined(invokes)

    def _shallow_copy(self) -> Traced:
        # nnsight's edit() makes a twin of this model; it must keep alive what holds the module wrapped.
        twin = super()._shallow_copy()
        twin._twin_of = self
        return twin

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, nn.Module) and not name.startswith("_") and hasattr(self, name):
            raise AdapterError(
                f"assigning a module to vae.{name} would not change the model; change vae.unwrap().{name}, then wrap it again."
            )
        super().__setattr__(name, value)
