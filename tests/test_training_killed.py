"""A training that is killed without warning goes on, when it is run again, to the bits of an uninterrupted one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from training_runs import assert_same, run

from nnsight_vae.models.checkpoints import CHECKPOINT
from nnsight_vae.models.files import read_tensors

# Kills itself in the middle of step 13, or of the writing of the checkpoint after step 15; checkpoints are every 5 steps.
SCRIPT = """
import os, signal
from pathlib import Path
from nnsight_vae.models import training
from training_runs import run

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

update, rename = training._Task.update, Path.replace
done = []

def update_or_die(task, state):
    if {when!r} == "step" and state.step == 13:
        state.optimizer.zero_grad()
        kill()
    done.append(update(task, state))

def rename_or_die(path, target):
    if {when!r} == "checkpoint" and len(done) == 15:
        kill()
    return rename(path, target)

training._Task.update, Path.replace = update_or_die, rename_or_die
run({out!r})
"""


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL on Windows")
@pytest.mark.parametrize("when", ["step", "checkpoint"])
def test_a_training_killed_by_sigkill_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, when):
    script = SCRIPT.format(when=when, out=str(tmp_path))
    search = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    died = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": search}, capture_output=True, text=True
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert read_tensors(tmp_path / CHECKPOINT)[1]["step"] == "10"
    assert not (tmp_path / "model.safetensors").exists()
    assert_same(run(tmp_path), run())
