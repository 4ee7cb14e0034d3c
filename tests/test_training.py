"""Training: the same bits from the same seed, whatever interrupts it; unfit input refused before any step."""

from __future__ import annotations

import csv
import json
import math
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_runs import CENTRES, IMAGES, STEPS, assert_same, blobs, die, run, stop_at

from nnsight_vae.errors import DataError, NnsightVaeError
from nnsight_vae.models import training
from nnsight_vae.models.bundle import load_module
from nnsight_vae.models.families import OBJECTIVES
from nnsight_vae.models.files import read_tensors
from nnsight_vae.models.labels import Labels
from nnsight_vae.models.objectives import Objective


def test_the_same_seed_gives_the_same_bits_and_another_seed_others():
    assert_same(run(), run())
    assert not torch.equal(run().module.fc_mu.weight, run(seed=1).module.fc_mu.weight)


@pytest.mark.parametrize("labelled", [False, True])
def test_killed_between_checkpoints_and_run_again_equals_uninterrupted(tmp_path, monkeypatch, labelled):
    options = {}
    if labelled:
        options = {"labels": Labels(*blobs(16, seed=1), ("row", "column")), "objective": Objective(label_weight=5.0)}
    with monkeypatch.context() as patch:
        stop_at(patch, 13, die)
        with pytest.raises(RuntimeError, match="killed"):
            run(tmp_path, **options)
    assert not (tmp_path / "model.safetensors").exists()
    resumed_from = []
    stop_at(monkeypatch, 10, lambda _: resumed_from.append(10))
    stop_at(monkeypatch, 9, die)  # a restart from scratch would die here
    resumed = run(tmp_path, **options)
    monkeypatch.undo()
    assert resumed_from == [10]
    assert_same(resumed, run(**options))


def test_ctrl_c_finishes_the_step_saves_it_and_raises_keyboard_interrupt(tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGINT)  # ignored, where the tests run in the background of a shell
    with monkeypatch.context() as patch:
        stop_at(patch, 12, lambda _: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    with pytest.raises(DataError, match="unfinished"):
        load_module(tmp_path)
    steps = []
    original = training._Task.update
    monkeypatch.setattr(training._Task, "update", lambda t, s: (steps.append(s.step), original(t, s)))
    resumed = run(tmp_path)
    assert steps[0] == 13, "the step that Ctrl-C fell into was kept"
    monkeypatch.undo()
    assert_same(resumed, run())
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_interrupts_at_once_and_the_last_checkpoint_stays(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 12, lambda _: (signal.raise_signal(signal.SIGINT), signal.raise_signal(signal.SIGINT)))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    assert_same(run(tmp_path), run())


def test_a_finished_folder_is_read_not_trained_again_and_no_temporary_file_is_left(tmp_path, monkeypatch):
    first = run(tmp_path)
    stop_at(monkeypatch, 0, die)
    assert_same(run(tmp_path), first)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"model.safetensors", "config.json", "losses.csv", "checkpoint.safetensors"}


def test_a_checkpoint_that_cannot_be_written_is_an_error_and_leaves_the_one_before(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        stop_at(patch, 7, lambda _: patch.setattr(Path, "replace", full))
        with pytest.raises(DataError, match="disk full"):
            run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]
    assert read_tensors(tmp_path / "checkpoint.safetensors")[1]["step"] == "5"
    assert_same(run(tmp_path), run())


def test_the_global_random_state_is_neither_read_nor_changed():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = run()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert_same(run(), first)


def test_the_saved_folder_holds_the_trained_model_and_its_record(tmp_path):
    trained = run(tmp_path, data="blobs", steps=60)
    loaded = load_module(tmp_path)
    assert torch.equal(loaded(IMAGES)[0], trained.module(IMAGES)[0])
    assert load_file(tmp_path / "model.safetensors").keys() == trained.module.state_dict().keys()
    config = json.loads((tmp_path / "config.json").read_text())
    assert config == trained.config
    assert config["architecture"] == "MLPVAE"
    assert config["arguments"] == {"image_shape": [1, 8, 8], "latent": 3, "hidden": [16]}
    assert (config["data"]["name"], config["data"]["images"]) == ("blobs", 64)
    assert (config["objective"]["name"], config["training"]["seed"]) == ("vae", 0)
    with (tmp_path / "losses.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [{key: float(value) for key, value in row.items()} for row in rows] == config["history"]
    assert [row["step"] for row in config["history"]] == [50, 60]


def test_the_history_is_the_mean_of_the_minibatch_losses(monkeypatch):
    seen = []
    original = Objective.losses

    def losses(self, *arguments):
        result = original(self, *arguments)
        seen.append({name: float(value.detach()) for name, value in vars(result).items()})
        return result

    monkeypatch.setattr(Objective, "losses", losses)
    (row,) = run(objective=Objective(beta=3.0)).config["history"]
    assert len(seen) == STEPS
    for name, of in (("loss", "total"), ("reconstruction", "reconstruction"), ("kl", "kl")):
        assert row[name] == pytest.approx(sum(one[of] for one in seen) / STEPS, rel=1e-6)
    assert row["loss"] == pytest.approx(row["reconstruction"] + 3 * row["kl"], rel=1e-6)
    assert row["labels"] == 0


def test_uint8_images_are_read_as_their_floats():
    bytes_ = (IMAGES * 255).round().to(torch.uint8)
    as_bytes, as_floats = run(images=bytes_), run(images=bytes_.float() / 255)
    assert as_bytes.config["history"] == as_floats.config["history"]


def test_the_learning_rate_falls_along_a_cosine_to_a_fiftieth(monkeypatch):
    rates = []
    original = training._Task.update

    def update(task, state):
        original(task, state)
        rates.append(state.optimizer.param_groups[0]["lr"])

    monkeypatch.setattr(training._Task, "update", update)
    run(steps=20, lr=0.1)
    assert rates[0] == pytest.approx(0.1)
    assert rates[10] == pytest.approx((0.1 + 0.002) / 2)
    assert rates[19] == pytest.approx(0.002 + 0.098 * (1 - math.cos(math.pi / 20)) / 2)


def test_training_lowers_the_loss():
    history = run(steps=400, lr=3e-3).config["history"]
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]


@pytest.mark.parametrize("name", ["vae", "beta-vae"])
def test_the_named_objectives_do_not_collapse_on_small_images(name):
    images, _ = blobs(512, seed=2)
    trained = run(images=images, objective=OBJECTIVES[name], steps=600, batch_size=32, lr=3e-3)
    assert trained.config["objective"]["name"] == name
    assert trained.config["history"][-1]["kl"] > 1


def test_labels_tie_latent_k_to_factor_k():
    images, centres = blobs(512, seed=2)
    labels = Labels(images[:128], centres[:128] * 10 + 3, ("row", "column"))
    objective = Objective(label_weight=100.0)
    trained = run(images=images, labels=labels, objective=objective, steps=600, batch_size=32, lr=3e-3)
    held_out, factors = blobs(200, seed=3)
    with torch.no_grad():
        mu = trained.module.encode(held_out)[0]
    correlation = torch.corrcoef(torch.cat([mu.T, factors.T]))[:3, 3:]
    assert correlation[0, 0] > 0.95
    assert correlation[1, 1] > 0.95
    assert abs(correlation[0, 1]) < 0.3
    record = trained.config["labels"]
    assert record["factors"] == ["row", "column"]
    assert record["mean"] == pytest.approx((centres[:128] * 10 + 3).mean(0).tolist())
    assert trained.config["objective"]["name"] == "labelled-vae"


def test_a_folder_of_another_run_is_refused_and_named(tmp_path):
    run(tmp_path, steps=5)
    with pytest.raises(DataError, match=r"training.steps was 5, now 6"):
        run(tmp_path, steps=6)
    with pytest.raises(DataError, match=r"data.sha256"):
        run(tmp_path, steps=5, images=IMAGES.flip(0))


def test_a_damaged_checkpoint_is_refused(tmp_path):
    (tmp_path / "checkpoint.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(DataError, match="Cannot read"):
        run(tmp_path)


@pytest.mark.parametrize("site", ["fc_mu", "fc_logvar"])
def test_divergence_is_an_error_and_the_checkpoint_before_it_stays(tmp_path, monkeypatch, site):
    def overflow(state):
        getattr(state.module, site).bias.data.fill_(float("inf"))

    with monkeypatch.context() as patch:
        stop_at(patch, 9, overflow)
        with pytest.raises(NnsightVaeError, match="diverged"):
            run(tmp_path)
    assert_same(run(tmp_path), run())


NAN = IMAGES.clone()
NAN[3, 0, 2, 2] = float("nan")
LABELS = Labels(IMAGES, CENTRES, ("row", "column"))
TIED = Objective(label_weight=1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": NAN}, "finite floats"),
        ({"images": IMAGES * 255}, r"expected finite floats in \[0, 1\]"),
        ({"images": IMAGES.long()}, "torch.int64"),
        ({"images": IMAGES[:0]}, "non-empty"),
        ({"images": IMAGES[:, 0]}, "channels, height, width"),
        ({"images": IMAGES.numpy()}, "ndarray"),
        ({"steps": 0}, "steps=0"),
        ({"batch_size": 2.5}, "batch_size=2.5"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"architecture": "GAN"}, "Known: ConvVAE, MLPVAE"),
        ({"arguments": {"width": 3}}, "width"),
        ({"arguments": {"latent": 0}}, "latent"),
        ({"labels": LABELS}, "go together"),
        ({"objective": TIED}, "go together"),
        ({"objective": TIED, "labels": LABELS, "arguments": {"latent": 1}}, "only 1 latents"),
        ({"objective": TIED, "labels": Labels(IMAGES[:9], CENTRES, ("row", "column"))}, "one row for each"),
        ({"objective": TIED, "labels": Labels(IMAGES, CENTRES, ("row",))}, "one column for each"),
        ({"objective": TIED, "labels": Labels(IMAGES[..., :7], CENTRES, ("row", "column"))}, r"\(1, 8, 7\)"),
        ({"objective": TIED, "labels": Labels(NAN, CENTRES, ("row", "column"))}, "labels.images"),
        ({"objective": TIED, "labels": Labels(IMAGES, CENTRES * 0, ("row", "column"))}, "constant"),
    ],
)
def test_unfit_input_is_refused_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        run(tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_cannot_be_made_is_refused_before_training(tmp_path, monkeypatch):
    stop_at(monkeypatch, 0, die)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="output folder"):
        run(tmp_path / "file" / "out")


def test_a_log_is_told_each_row_of_the_history_as_it_is_closed():
    told = []
    trained = run(steps=120, log=lambda step, losses: told.append({"step": step, **losses}))
    assert told == trained.config["history"]
    assert [row["step"] for row in told] == [50, 100, 120]
    assert_same(trained, run(steps=120))


def test_a_run_that_continues_logs_on_and_one_whose_log_raises_stops_at_its_checkpoint(tmp_path):
    def stop_early(step, losses):
        if step == 100:
            raise RuntimeError("good enough")

    with pytest.raises(RuntimeError, match="good enough"):
        run(tmp_path, steps=120, checkpoint_every=60, log=stop_early)
    told = []
    resumed = run(
        tmp_path, steps=120, checkpoint_every=60, log=lambda step, losses: told.append((step, losses["loss"]))
    )
    assert told == [(row["step"], row["loss"]) for row in resumed.config["history"][1:]]
    assert_same(resumed, run(steps=120))
    run(tmp_path, steps=120, checkpoint_every=60, log=die)  # finished: there is nothing left to tell


def test_losses_reach_tensorboard_as_the_docstring_says(tmp_path):
    tensorboard = pytest.importorskip("torch.utils.tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = tensorboard.SummaryWriter(tmp_path)
    history = run(
        steps=60, log=lambda step, losses: [writer.add_scalar(f"train/{k}", v, step) for k, v in losses.items()]
    ).config["history"]
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == {f"train/{name}" for name in history[0] if name != "step"}
    for name in ("loss", "reconstruction", "kl"):
        written = [(event.step, event.value) for event in events.Scalars(f"train/{name}")]
        assert written == [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in history]
