"""The main job end to end on small data: a folder is written, can be read back, and survives interruption and mistakes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
from linear import LinearVAE, LinearWorld
from typer.testing import CliRunner

import nnsight_vae as nv
from nnsight_vae import cli
from nnsight_vae.report import Settings, analysis, analyze, summary as summary_text
from nnsight_vae.report.effect_steps import split_effects
from nnsight_vae.report.folder import Folder
from nnsight_vae.report.graph_steps import extract_all, extract_one, relate_factors
from nnsight_vae.report.latent_steps import map_latents, match
from nnsight_vae.report.run import Run

SMALL = ["--pairs", "12", "--images", "24"]


def blobs(n: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """8 x 8 images of a blob at (x, y)."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(2, 5, (2, n))
    grid = np.arange(8)
    distance = (grid[None, None, :] - x[:, None, None]) ** 2 + (grid[None, :, None] - y[:, None, None]) ** 2
    return np.exp(-distance / 2)[:, None].astype(np.float32), np.stack([x, y], 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data as a user would bring them, and a model trained on them by the command line."""
    path = tmp_path_factory.mktemp("work")
    images, factors = blobs()
    np.savez(path / "blobs.npz", images=images, factors=factors, names=np.array(["x", "y"]))
    result = run(
        "train", "--data", path / "blobs.npz", "--network", "mlp", "--latent", 3, "--steps", 300, "--out", path / "run"
    )
    assert result.exit_code == 0, result.output
    return path


def run(*words):
    return CliRunner().invoke(cli.app, [str(word) for word in words])


def analyse(folder, out, *more):
    return run("analyze", "--model", folder / "run", "--data", folder / "blobs.npz", "--out", out, *SMALL, *more)


@pytest.fixture(scope="module")
def report(folder):
    result = analyse(folder, folder / "report")
    assert result.exit_code == 0, result.output
    return folder / "report", result.output


def test_every_file_is_there_and_can_be_read_elsewhere(report):
    path, _ = report
    summary = json.loads((path / "summary.json").read_text())
    assert "figures/traversals.png" in summary["files"]
    assert summary["schema"] == "nnsight-vae/summary@1"
    for name in summary["files"]:
        assert (path / name).stat().st_size > 0, name
    for name in ("factor_map.csv", "effects_latents.csv", "effects_inputs.csv", "effects_patching.csv", "metrics.csv"):
        assert len(pd.read_csv(path / name)) > 0
    circuit = nv.read_circuit(path / "circuit.json")
    again = nx.read_graphml(path / "circuit.graphml")
    assert set(map(str, circuit)) == set(again)
    assert set(nx.read_graphml(path / "factor_graph.graphml")) == {"x", "y"}
    assert {p.name for p in (path / "figures").iterdir()} >= {"traversals.png", "latents.png", "effects_x.png"}


def test_the_summary_says_what_was_found_how_sure_and_where(report):
    path, output = report
    for part in ("KL per latent", "Latents:", "Units that carry x", "Circuit of x", str(path)):
        assert part in output
    summary = json.loads((path / "summary.json").read_text())
    assert summary["model"]["verify"] == 0.0
    assert len(summary["factor_map"]["verdicts"]) == 3
    for found in summary["patching"].values():
        for unit in found["top"]:
            assert unit["low"] <= unit["effect"] <= unit["high"]


def test_the_numbers_are_those_of_the_library(report, folder):
    path, _ = report
    vae, data = nv.load(folder / "run"), nv.datasets.load(folder / "blobs.npz")
    effects = nv.patch_activations(vae, data.pairs("x", 12), readout=data.readout(["x"]))
    table = pd.read_csv(path / "effects_patching.csv").query("factor == 'x'").set_index("unit")["effect"]
    for unit, mean in zip(effects.units, effects.mean()[:, 0], strict=True):
        assert table[unit] == pytest.approx(mean, abs=1e-6)


def test_the_same_seed_gives_the_same_numbers(report, folder, tmp_path):
    path, _ = report
    assert analyse(folder, tmp_path / "again").exit_code == 0
    first, second = (json.loads((p / "summary.json").read_text()) for p in (path, tmp_path / "again"))
    assert first == second
    assert (path / "effects_patching.csv").read_bytes() == (tmp_path / "again" / "effects_patching.csv").read_bytes()


def test_an_interrupted_run_keeps_what_it_finished_and_continues(report, folder, tmp_path, monkeypatch):
    out = tmp_path / "report"

    def stop(run):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(analysis, "STEPS", tuple(stop if step is split_effects else step for step in analysis.STEPS))
        result = analyse(folder, out)
    assert result.exit_code == 130
    assert "continues from there" in result.output
    kept = out / "effects" / "patching_x.npz"
    written = kept.stat().st_mtime_ns
    assert not (out / "summary.json").exists()
    assert analyse(folder, out).exit_code == 0
    assert kept.stat().st_mtime_ns == written  # reused, not computed again
    assert json.loads((out / "summary.json").read_text()) == json.loads((report[0] / "summary.json").read_text())


def test_other_settings_do_not_reuse_old_effects(report, folder):
    path, _ = report
    written = (path / "effects" / "patching_x.npz").stat().st_mtime_ns
    copy = folder / "copied"
    (copy / "effects").mkdir(parents=True)
    (copy / "effects" / "patching_x.npz").write_bytes((path / "effects" / "patching_x.npz").read_bytes())
    assert analyse(folder, copy, "--seed", "1", "--factor", "x").exit_code == 0
    assert (
        nv.Effects.load(copy / "effects" / "patching_x.npz").provenance["request"]
        != nv.Effects.load(path / "effects" / "patching_x.npz").provenance["request"]
    )
    assert (path / "effects" / "patching_x.npz").stat().st_mtime_ns == written


def test_mistakes_end_with_one_line_before_any_work(folder, tmp_path):
    data, model = folder / "blobs.npz", folder / "run"
    blocked = tmp_path / "file"
    blocked.write_text("")
    cases = {
        ("--model", "nothing", "--data", data): "bundled",
        ("--model", "no.such.module:make", "--data", data): "cannot import",
        ("--model", "json:dumps", "--data", data): "could not be called",
        ("--model", model, "--data", tmp_path / "none.npz"): "No dataset",
        ("--model", model, "--data", "pendulum"): "cannot run x",
        ("--model", model, "--data", data, "--factor", "mass"): "no factors mass",
    }
    for words, message in cases.items():
        out = tmp_path / "out"
        result = run("analyze", *words, "--out", out, *SMALL)
        assert result.exit_code == 2, result.output
        assert message in result.output
        assert not (out / "summary.json").exists()
    result = run("analyze", "--model", model, "--data", data, "--out", blocked / "report", *SMALL)
    assert result.exit_code == 2
    assert "output folder" in result.output


def test_a_factory_with_weights(folder, tmp_path, monkeypatch):
    (tmp_path / "mymodel.py").write_text(
        "from nnsight_vae.models import MLPVAE\n\n\ndef make():\n    return MLPVAE(image_shape=(1, 8, 8), latent=3)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    weights = folder / "run" / "model.safetensors"
    vae = nv.load("mymodel:make", weights)
    trained = nv.load(folder / "run")
    x = torch.from_numpy(blobs(5)[0])
    assert torch.equal(vae(x), trained(x))
    (tmp_path / "other.py").write_text(
        "from nnsight_vae.models import MLPVAE\n\n\ndef make():\n    return MLPVAE(image_shape=(1, 8, 8), latent=7)\n"
    )
    with pytest.raises(nv.DataError, match="fc_mu"):
        nv.load("other:make", weights)
    with pytest.raises(nv.DataError, match="factory"):
        nv.load("pendulum-beta-vae", weights)


def test_info_lists_models_and_shows_sites(folder):
    assert "pendulum-beta-vae" in run("info").output
    shown = run("info", "--model", folder / "run").output
    assert "latent.z" in shown
    assert "fc_mu" in shown


def test_a_dataset_with_a_graph_is_compared_with_it(folder, tmp_path):
    images, factors = blobs()
    data = nv.datasets.from_arrays(images, factors, graph=nx.DiGraph([("x", "y")]), names=["x", "y"])
    summary = analyze(nv.load(folder / "run"), data, tmp_path / "out", Settings(pairs=12, images=24))
    comparison = summary.sections["factor_graph"]["latents"]["comparison"]
    assert comparison["kind"] == "total"
    assert comparison["n_true"] == 1
    assert "against the transitive closure" in str(summary)
    edges = summary.sections["factor_graph"]["latents"]["edges"]
    for edge in edges:
        assert edge["low"] < edge["size"] < edge["high"]
        stated = f"{edge['cause']} -> {edge['effect']}"
        verdict = "true" if stated == "x -> y" else "not true"
        line = next(line for line in str(summary).splitlines() if line.strip().startswith(stated))
        assert f"{edge['size']:.2f} sd [{edge['low']:.2f}, {edge['high']:.2f}]" in line
        assert line.endswith(f"]  {verdict}")
    missed = [] if any((edge["cause"], edge["effect"]) == ("x", "y") for edge in edges) else ["x -> y"]
    assert f"true effects that it misses: {', '.join(missed) or 'none'}" in str(summary)


def test_the_circuits_of_all_factors_are_written_in_the_graph_of_the_factors(report):
    path, _ = report
    graph = nv.read_circuit(path / "factor_circuits.json")
    assert nx.utils.graphs_equal(nv.read_circuit(path / "factor_circuits.graphml"), graph)
    assert graph.graph["factors"] == ["x", "y"]
    for factor in ("x", "y"):
        assert nx.has_path(graph, f"factor:{factor}", f"readout:{factor}")
    table = pd.read_csv(path / "factor_circuits.csv")
    assert set(table.factor) == {"x", "y"}
    told = json.loads((path / "summary.json").read_text())["factor_circuits"]
    assert [line.partition(":")[0] for line in told] == ["x", "y"]


def test_changed_data_of_the_same_name_are_patched_anew(folder, tmp_path):
    images, factors = blobs()
    vae, out, settings = nv.load(folder / "run"), tmp_path / "out", Settings(("x",), pairs=12, images=24)
    kept = out / "effects" / "patching_x.npz"
    summaries = []
    for pictures in (images, images, images[:, :, :, ::-1].copy()):
        data = nv.datasets.from_arrays(pictures, factors, names=["x", "y"])
        summaries.append((analyze(vae, data, out, settings).to_dict(), kept.stat().st_mtime_ns))
    assert summaries[0] == summaries[1]
    assert summaries[2][1] != summaries[0][1]


def test_a_model_with_one_latent_is_analysed_and_its_undefined_control_is_null(tmp_path):
    data = LinearWorld()
    run = Run(one_latent(), data, Folder(tmp_path), Settings(images=40), "one latent")
    run.intervenes = True
    run.mapping = nv.causal.map_factors(run.vae, data, n=40)
    relate_factors(run)
    rows = run.sections["interchange"]
    assert rows
    assert {row["control"] for row in rows} == {None}
    json.dumps(run.sections, allow_nan=False)
    assert "other latents" not in "\n".join(summary_text._graphs(run.sections))


def test_latents_whose_prior_is_not_known_are_mapped_and_the_summary_says_so(tmp_path, monkeypatch):
    run = Run(one_latent(), LinearWorld(), Folder(tmp_path), Settings(images=40), "one latent")
    run.sections["model"] = {"name": run.name, "verify": 0.0}
    found = replace(nv.causal.map_factors(run.vae, run.data, n=40), kl=None)
    monkeypatch.setattr("nnsight_vae.report.latent_steps.map_factors", lambda *args, **options: found)
    map_latents(run)
    assert run.sections["model"]["kl"] is None
    assert not (tmp_path / "figures" / "traversals.png").exists()  # this model's output are vectors
    json.dumps(run.sections, allow_nan=False)
    run.sections["data"] = {"name": "linear world", "readout_r2_on_reconstructions": {}}
    assert "KL per latent: undefined" in "\n".join(summary_text._model(run.sections))


def test_where_no_factor_has_a_circuit_none_is_drawn(tmp_path):
    eye = torch.eye(3, dtype=torch.double)
    deaf = nv.VAE(LinearVAE(eye, 0 * eye, eye, eye, logvar=0.0))  # no latent follows the input

    class Unexplained(LinearWorld):
        graph = None  # of the world, which would be drawn without circuits too

    run = Run(deaf, Unexplained(), Folder(tmp_path), Settings(pairs=12, images=40), "deaf")
    run.sections["model"], run.intervenes = {}, False
    for step in (map_latents, relate_factors, extract_one, extract_all):
        step(run)
    assert all("no circuit" in line for line in run.sections["factor_circuits"])
    assert not list((tmp_path / "figures").glob("*circuit*"))


def one_latent() -> nv.VAE:
    eye = torch.eye(3, dtype=torch.double)
    return nv.VAE(LinearVAE(eye, eye[:1], eye[:, :1], eye, logvar=-8.0))


def test_what_is_no_model_and_no_data_set_is_called_so(tmp_path):
    with pytest.raises(nv.AdapterError, match="where a VAE belongs"):
        analyze(one_latent().module, LinearWorld(), tmp_path / "out")
    with pytest.raises(nv.DataError, match="got a DiGraph where a data set belongs"):
        analyze(one_latent(), LinearWorld().graph, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_factory_in_the_working_directory_is_found(tmp_path):
    """By the console script too, whose own folder is first on the path."""
    (tmp_path / "beside.py").write_text(
        "from nnsight_vae.models import MLPVAE\n\n\ndef make():\n    return MLPVAE(image_shape=(1, 8, 8), latent=3)\n"
    )
    script = "import sys; sys.path.pop(0); from nnsight_vae.cli import main; sys.argv = ['nnsight-vae', 'info', '--model', 'beside:make']; main()"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "latent.z" in done.stdout


def test_a_match_names_what_else_the_latent_moves():
    eye, half = torch.eye(3, dtype=torch.double), math.sqrt(0.5)
    turn = torch.tensor([[half, half, 0], [-half, half, 0], [0, 0, 1]], dtype=torch.double)
    found = nv.causal.map_factors(nv.VAE(LinearVAE(eye, turn, turn.T, eye, logvar=-8.0)), LinearWorld(), n=60)
    also = {factor: match(found, factor)["also"] for factor in found.factors}
    assert also == {"cause": ["effect"], "effect": ["cause"], "other": []}
