"""A VAE's hold on the user's module: one wrapper at a time, one run at a time, and everything put back at the end."""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

from nnsight_vae.errors import AdapterError
from nnsight_vae.snapshot import Snapshot, eval_mode, submodules_run

if TYPE_CHECKING:
    from nnsight_vae._nnsight import VAEInterleaver

# Which hold a module is in now: wrapping it again (a notebook cell run twice) retires the older wrapper.
_HOLDS: weakref.WeakKeyDictionary[nn.Module, weakref.ref[Hold]] = weakref.WeakKeyDictionary()


class Hold:
    """Keeps a module as its owner needs it, from construction until `release`, or until the owner is collected.

    Taking hold of a module retires any older wrapper of it, or of a part of it.

    Attributes:
        lock: held by the thread that runs the module.
    """

    def __init__(self, owner: object, module: nn.Module) -> None:
        for older in {hold() for part in module.modules() if (hold := _HOLDS.get(part)) is not None}:
            if older is not None:
                older.release()
        self.lock = threading.RLock()
        self._snapshot = Snapshot(module)
        # A wrapper that is merely forgotten must leave nothing behind either. Not at exit: nothing is left to be put back then.
        self._restore = weakref.finalize(owner, self._snapshot.restore)
        self._restore.atexit = False
        for part in module.modules():
            _HOLDS[part] = weakref.ref(self)

    @property
    def live(self) -> bool:
        """Whether the module is still wrapped by the owner."""
        return self._restore.alive

    def require_live(self) -> None:
        """Refuse to go on with a retired wrapper.

        Raises:
            AdapterError: says what happened to it.
        """
        if not self.live:
            raise AdapterError(
                "this VAE was unwrapped (or its module was wrapped again, which retires the older wrapper); use the new wrapper, "
                "or wrap the module again with nv.VAE(module)."
            )

    @contextmanager
    def run(self, root: nn.Module, interleaver: VAEInterleaver) -> Iterator[None]:
        """For one run: one thread at a time, eval mode, outside any trace that is open, flags restored.

        Args:
            root: what runs, around the module.
            interleaver: of the traces that may be open.
        """
        with self.lock:
            self.require_live()
            with eval_mode(root), submodules_run(), interleaver.stood_down():
                yield

    def disable_inplace(self) -> None:
        """Switch the module's in-place activations off until release, so that a saved activation is what its site computed."""
        self._snapshot.disable_inplace()

    def release(self) -> None:
        """Put the module back as it was. Waits for a run of another thread; does nothing the second time."""
        with self.lock:
            self._restore()

    def clean_copy(self, kept: tuple[Any, ...], memo: dict[int, Any]) -> tuple[Any, ...]:
        """Deep copies of the module and what goes with it, in which nothing of the wrapping is left.

        One copy of all together, so that bound methods of the module become those of its copy.
        """
        with self.lock:
            copies = copy.deepcopy(kept, memo)
            if self.live:
                self._snapshot.clean(memo)
        return copies
