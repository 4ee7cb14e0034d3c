"""The summary of a report: plain data for `summary.json`, and the text a person reads first."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Summary:
    """What an analysis found, how sure it is, and where the files are; `print` shows it.

    Attributes:
        sections: section name -> plain JSON data, as in `summary.json`.
        cautions: what to keep in mind when reading the results.
        folder: where the files are.
        files: their names.
    """

    folder: Path
    sections: dict[str, Any] = field(default_factory=dict)
    cautions: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON data."""
        return {"schema": "nnsight-vae/summary@1", **self.sections, "cautions": self.cautions, "files": self.files}

    def text(self) -> str:
        """The findings and the cautions."""
        writers = (_model, _latents, _patching, _graphs, _circuit, _circuits)
        lines = [line for write in writers for line in write(self.sections)]
        if self.cautions:
            lines += ["", "Read with care", *(f"  - {caution}" for caution in self.cautions)]
        return "\n".join(lines)

    def __str__(self) -> str:
        return f"{self.text()}\n\nOpen {self.folder / 'index.html'}: all of this with figures, tables and graphs."


def _model(sections: dict[str, Any]) -> list[str]:
    model, data = sections["model"], sections["data"]
    kl = "  KL per latent: undefined, the prior is not known or the latents share one"
    if model["kl"] is not None:
        nats = ", ".join(f"{each:.2f}" for each in sorted(model["kl"], reverse=True))
        kl = f"  KL per latent, nats: {nats} (sum {sum(model['kl']):.1f})"
    lines = [f"{model['name']} on {data['name']}", f"{kl}; wrapper equals the model to {model['verify']:g}"]
    r2 = data["readout_r2_on_reconstructions"]
    shown = ", ".join(f"{name} {'undefined' if value is None else f'{value:.2f}'}" for name, value in r2.items())
    return [*lines, f"  readout R2 on this model's reconstructions: {shown}"]


def _latents(sections: dict[str, Any]) -> list[str]:
    found = sections["factor_map"]
    counts = {
        verdict: found["verdicts"].count(verdict)
        for verdict in ("monosemantic", "polysemantic", "undetermined", "dead")
    }
    stated = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    lines = ["", f"Latents: {stated} (chance of any wrong verdict about {1 - found['level']:.0%} at most)"]
    for factor, match in found["assignment"].items():
        if match is None:
            lines.append(
                f"  {factor:<18} no latent moves it by more than {found['min_effect']:g} sd under one-to-one matching"
            )
            continue
        also = f"; it also moves {', '.join(match['also'])}" if match["also"] else ""
        size = f"{match['size']:.2f} sd [{match['low']:.2f}, {match['high']:.2f}]"
        lines.append(f"  {factor:<18} {match['unit']} moves it by {size}{also}")
    metrics = sections["metrics"]
    lines.append(f"  circuit modularity of the decoder {metrics['modularity']} (1: latents act through separate units)")
    return lines


def _patching(sections: dict[str, Any]) -> list[str]:
    lines = []
    for factor, found in sections["patching"].items():
        lines += ["", f"Units that carry {factor}: {found['significant']} of {found['units']} (FDR {found['q']:g}, at least "
                  f"{found['min_effect']:g} sd; {found['pairs']} pairs)"]  # fmt: skip
        lines += [f"  {u['unit']:<18}{u['effect']:+.2f} sd [{u['low']:+.2f}, {u['high']:+.2f}]" for u in found["top"]]
        mediation = sections["mediation"].get(factor)
        if mediation:
            lines.append(f"  through {mediation['mediator']}: {mediation['text']}")
    return lines


def _graphs(sections: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    names = {"latents": "moving latents", "inputs": "moving the world, through the model"}
    for through, found in sections["factor_graph"].items():
        lines += ["", f"The model's graph over factors, {names[through]}{'' if found['edges'] else ': no edges'}"]
        comparison = found.get("comparison")
        false = {tuple(edge) for name in ("extra", "reversed") for edge in (comparison or {}).get(name, ())}
        for edge in found["edges"]:
            ends = (edge["cause"], edge["effect"])
            right = "" if comparison is None else "  not true" if ends in false else "  true"
            size = f"{edge['size']:.2f} sd [{edge['low']:.2f}, {edge['high']:.2f}]"
            lines.append(f"  {' -> '.join(ends):<36}{size}{right}")
        if comparison:
            c = comparison
            missed = ", ".join(" -> ".join(edge) for edge in c["missed"]) or "none"
            lines.append(f"  true effects that it misses: {missed}")
            scores = f"SHD {c['shd']:g} (empty graph {c['empty']['shd']:g}, random {_number(c['random'], 'shd')})"
            lines.append(
                f"  against {c['compared_with']}: {scores}, F1 {_plain(c['f1'])}, permutation p {c['p_value']:.2g}"
            )
    rows = {(row["factor"], row["propagate"]): row for row in sections.get("interchange", [])}
    if rows:
        lines += [
            "",
            "Swapping a factor's latent between two images: accuracy against the world's counterfactual (1 is perfect)",
        ]
    for (factor, propagate), alone in rows.items():
        if not propagate:
            swaps = [_swapped(row) for row in (alone, rows[factor, True])]
            others = "" if alone["control"] is None else f"; other latents {alone['control']:.2f}"
            lines.append(f"  {factor:<18} alone {swaps[0]}; with its descendants {swaps[1]}{others}")
    return lines


def _circuit(sections: dict[str, Any]) -> list[str]:
    circuit = sections.get("circuit")
    if not circuit:
        return []
    lines = ["", f"Circuit of {circuit['factor']}: {circuit['nodes']} nodes, {circuit['edges']} edges"]
    return [*lines, *(f"  {line}" for line in circuit["faithfulness"].splitlines())]


def _circuits(sections: dict[str, Any]) -> list[str]:
    found = sections.get("factor_circuits", [])
    title = "The units of each factor when it changes alone; latents with their share of the effect"
    return ["", title, *(f"  {line}" for line in found)] if found else []


def _number(scores: dict[str, Any] | None, name: str) -> str:
    return "undefined" if scores is None else _plain(scores[name])


def _swapped(row: dict[str, Any]) -> str:
    return "undefined" if row["score"] is None else f"{row['score']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def _plain(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2g}"
