"""Data flow one way: which module imports which, read off the source, imports inside functions included."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import NamedTuple

import networkx as nx
import pytest

import nnsight_vae
from nnsight_vae import adapters

ROOTS = {
    "nnsight_vae": Path(nnsight_vae.__file__).parent,
    "nnsight_vae.adapters": Path(adapters.__file__).parent,
}

# A class hands its file, its table and its picture to modules that know the class; they are loaded when asked for.
HANDED_ON = {
    ("results.effects", "results.effects_file"),
    ("results.effects", "results.effects_frame"),
    ("results.effects", "results.effects_text"),
    ("results.effects", "plots"),
    ("results.mediation", "results.mediation_table"),
    ("results.mediation", "plots"),
    ("results.dose_response", "results.dose_file"),
    ("circuits.scoring.edges", "circuits.scoring.edges_file"),
    ("circuits.evaluation.faithfulness_result", "circuits.evaluation.faithfulness_file"),
}
# What reads any form of a thing knows its special forms, which are built on the plain one.
SPECIAL_FORMS = {
    ("posterior", "von_mises_fisher"),
    ("adapters.base", "adapters.generic"),
    ("datasets.procedural", "datasets.procedural_readout"),
    ("metrics.polysemanticity_verdicts", "causal.unit_verdict"),
}
LATER = HANDED_ON | SPECIAL_FORMS

# Each floor imports from itself and from floors below; packages stand for all their modules.
TRACING = {
    "_nnsight", "hold", "intake", "kernels", "layout", "layouts", "probe", "routes", "runs", "self_check", "snapshot", "traced",
    "vae", "verification", "wrapped", "wrapped_ladder", "wrapping",
}  # fmt: skip
ENGINE = {"arguments", "diagnosis", "donors", "engine", "groups", "provenance", "reencoded", "writes"}
UPPER = {"levels", "metrics", "attribution", "circuits", "causal"}
TOP = {"report", "cli", "testing"}
PICTURES = {"plots", "dose_plot", "effects_plot", "position_plot"}
# The fronts of metrics fetch from a model what the metrics themselves, functions of arrays, are computed from.
FRONTS = {"fronts", "all_metrics", "moved_latents", "polysemanticity_verdicts"}


class Import(NamedTuple):
    """One import of ours in one of our modules; names are without the package's."""

    source: str
    target: str
    line: int
    later: bool  # inside a function
    types: bool  # for type checkers only


@cache
def files() -> dict[str, Path]:
    found = {}
    for package, root in ROOTS.items():
        for file in root.rglob("*.py"):
            parts = [package, *file.relative_to(root).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


@cache
def imports() -> list[Import]:
    return [found for name in files() for found in _imports_of(name)]


def _imports_of(name: str) -> list[Import]:
    package = name if files()[name].name == "__init__.py" else name.rpartition(".")[0]
    found: list[Import] = []

    def walk(node: ast.AST, later: bool, types: bool) -> None:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for target in _targets(node, package):
                if target != name:
                    found.append(Import(_short(name), _short(target), node.lineno, later, types))
        later = later or isinstance(node, ast.FunctionDef | ast.Lambda)
        guarded = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.iter_child_nodes(node):
            walk(child, later, types or guarded)

    walk(ast.parse(files()[name].read_text()), later=False, types=False)
    return found


def _targets(node: ast.Import | ast.ImportFrom, package: str) -> set[str]:
    """Our modules that a statement imports, the deepest that each name stands for."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    else:
        around = package.rsplit(".", node.level - 1)[0] if node.level else ""
        base = ".".join(part for part in (around, node.module) if part)
        names = [f"{base}.{alias.name}" for alias in node.names]
    return {known for name in names for known in [next((p for p in _prefixes(name) if p in files()), None)] if known}


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(len(parts), 0, -1)]


def _short(name: str) -> str:
    return name.removeprefix("nnsight_vae").removeprefix(".")


def graph(*, later: bool) -> nx.DiGraph:
    """Who imports whom when run; type checkers alone may go in circles."""
    run = [each for each in imports() if not each.types and (later or not each.later)]
    found = nx.DiGraph((each.source, each.target) for each in run)
    found.add_nodes_from(map(_short, files()))
    return found


def within(module: str, names: set[str]) -> bool:
    return module.split(".")[0] in names


def test_the_source_is_read_as_it_is_written():
    edges = {(each.source, each.target): each for each in imports()}
    assert len(files()) > 300
    assert not edges["engine", "runs"].later
    assert edges["results.effects", "plots"].later  # inside Effects.plot
    assert edges["hold", "_nnsight"].types  # for type checkers only
    assert ("doses", "errors") in edges  # relative
    assert ("adapters.adapt", "vae") in edges  # a folder that is a package of another name


def test_no_module_needs_itself_to_be_loaded():
    assert list(nx.simple_cycles(graph(later=False))) == []


def test_nor_to_run_except_where_a_class_hands_on_what_it_loads_when_asked():
    whole = graph(later=True)
    assert set(whole.edges) >= LATER  # none of them is history
    whole.remove_edges_from(LATER)
    assert [sorted(each) for each in nx.strongly_connected_components(whole) if len(each) > 1] == []
    for edge in LATER:  # and each of them is one
        assert nx.has_path(whole, edge[1], edge[0]), edge


def violations(below: set[str], above: set[str]) -> list[str]:
    """Imports of `above` in `below`, inside functions included."""
    return [
        f"{each.source}:{each.line} imports {each.target}"
        for each in imports()
        if not each.types and within(each.source, below) and within(each.target, above)
    ]


@pytest.mark.parametrize(
    ("below", "above"),
    [
        (TRACING, ENGINE | UPPER | TOP | {"results", "loading"} | PICTURES),
        (ENGINE, UPPER | TOP | {"results", "loading"} | PICTURES),
        ({"results"}, UPPER | TOP | ENGINE | TRACING),
        ({"levels"}, {"attribution", "circuits", "causal"}),
        (UPPER, TOP | {"loading"}),
        ({"stats"}, TRACING | ENGINE | UPPER | TOP | {"results", "datasets", "models", "readouts", "pairs"}),
    ],
    ids=["tracing", "engine", "results", "levels", "experiments", "statistics"],
)
def test_floors_import_from_floors_below(below, above):
    assert violations(below, above) == []


def reached(module: str) -> set[str]:
    whole = graph(later=True)
    whole.remove_edge("readouts", "reencoded")  # the one readout that holds a model, loaded when its name is asked for
    return nx.descendants(whole, module)


def test_data_sets_and_models_know_nothing_of_tracing():
    """A network or a data set can be used, and shipped, where nnsight is not installed."""
    for module in files():
        name = _short(module)
        if within(name, {"datasets", "models"}) and not name.endswith(("build_zoo", "measured")):
            assert not {each for each in reached(name) if within(each, TRACING | ENGINE)}, name


def test_metrics_other_than_their_fronts_know_only_arrays():
    for module in files():
        package, _, name = _short(module).partition(".")
        if package == "metrics" and name and name not in FRONTS:
            assert not {
                each for each in reached(f"metrics.{name}") if within(each, TRACING | ENGINE | UPPER - {"metrics"})
            }, name


def test_one_module_alone_knows_how_nnsight_works():
    found = set()
    for name, file in files().items():
        for node in ast.walk(ast.parse(file.read_text())):
            wanted = [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            wanted += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if any(str(each).split(".")[0] == "nnsight" for each in wanted):
                found.add((_short(name), ast.unparse(node)))
    beyond = {(name, line) for name, line in found if name != "_nnsight"}
    assert beyond == {("traced", "from nnsight import NNsight")}


def test_stubs_name_nothing_internal():
    for root in ROOTS.values():
        for stub in root.rglob("*.pyi"):
            for node in ast.walk(ast.parse(stub.read_text())):
                if isinstance(node, ast.ImportFrom):
                    assert not [alias.name for alias in node.names if alias.name.startswith("_")], stub
