"""The output folder: checked before any work, every file whole or absent, finished effects reused by a second run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnsight_vae._files import write_atomically
from nnsight_vae.errors import DataError
from nnsight_vae.results.effects import Effects

if TYPE_CHECKING:
    import networkx as nx
    import pandas as pd
    from matplotlib.figure import Figure


class Folder:
    """Where a report is written.

    Raises:
        DataError: the folder cannot be made or written to.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.written: list[str] = []
        try:
            (self.path / "figures").mkdir(parents=True, exist_ok=True)
            (self.path / "effects").mkdir(exist_ok=True)
        except OSError as error:
            raise DataError(
                f"cannot make the output folder {self.path}: {error}. Choose another with --out."
            ) from error
        write_atomically(self.path / ".writable", b"")
        (self.path / ".writable").unlink()

    def table(self, name: str, frame: pd.DataFrame) -> None:
        """Write a table as CSV."""
        write_atomically(self._note(name), frame.to_csv(index=False).encode())

    def record(self, name: str, data: dict[str, Any]) -> None:
        """Write plain data as JSON."""
        write_atomically(self._note(name), json.dumps(data, indent=2, allow_nan=False).encode())

    def text(self, name: str, text: str) -> None:
        """Write a text or a page."""
        write_atomically(self._note(name), text.encode())

    def figure(self, name: str, figure: Figure) -> None:
        """Write a figure under `figures/`."""
        from nnsight_vae.plots import save_figure

        save_figure(figure, self._note(f"figures/{name}"))

    def graph(self, name: str, graph: nx.DiGraph) -> None:
        """Write a graph in the format its suffix names."""
        from nnsight_vae.circuits.files.export import export

        export(graph, self._note(name))

    def effects(self, name: str, effects: Effects) -> None:
        """Write effects, pair by pair, under `effects/`."""
        effects.save(self._note(f"effects/{name}.npz"))

    def finished(self, name: str, request: dict[str, Any]) -> Effects | None:
        """Effects an earlier run finished, if they answer the same request; None otherwise."""
        path = self.path / "effects" / f"{name}.npz"
        if not path.exists():
            return None
        try:
            effects = Effects.load(path)
        except DataError:
            return None
        if effects.provenance.get("request") != json.loads(json.dumps(request)):
            return None
        self._note(f"effects/{name}.npz")
        return effects

    def _note(self, name: str) -> Path:
        if name not in self.written:
            self.written.append(name)
        return self.path / name
