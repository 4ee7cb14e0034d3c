"""Every snippet and every command of the README runs."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from vaes import ConvVAE, images, seeded

README = (Path(__file__).parent.parent / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL) for line in block.splitlines()]


def test_the_snippets_run_in_order(tmp_path, monkeypatch):
    """They share one namespace, as they would in a notebook; only the user's own model and images are given."""
    monkeypatch.chdir(tmp_path)
    model = seeded(ConvVAE())
    names = {"my_model": model, "images": images(model, 4)}
    assert len(SNIPPETS) >= 7
    for i, snippet in enumerate(SNIPPETS):
        # nnsight reads a trace's source from its file, so the snippet must be one.
        path = tmp_path / f"snippet_{i}.py"
        path.write_text(snippet)
        exec(compile(snippet, str(path), "exec"), names)
    assert names["moved"].shape == names["images"].shape
    assert (tmp_path / "angle.graphml").exists()
    assert (tmp_path / "angle.html").exists()


@pytest.mark.slow
def test_the_commands_run(tmp_path):
    ours = [shlex.split(line) for line in COMMANDS if line.startswith("nnsight-vae ")]
    assert [words[1] for words in ours] == ["demo", "train", "analyze", "info", "circuits-benchmark"]
    for words in ours:
        subprocess.run([sys.executable, "-m", "nnsight_vae.cli", *words[1:]], cwd=tmp_path, check=True)
    for report in ("demo-report/pendulum-beta-vae", "demo-report/pendulum-labelled-vae", "report"):
        assert (tmp_path / report / "summary.json").exists()


def test_the_make_targets_exist():
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


@pytest.mark.slow
@pytest.mark.parametrize(
    "example", sorted((Path(__file__).parent.parent / "examples").glob("*.py")), ids=lambda p: p.stem
)
def test_the_examples_run(example, tmp_path):
    result = subprocess.run([sys.executable, str(example)], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
