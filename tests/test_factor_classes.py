"""Learned readouts: discrete factors as classes, effects that are not too small, and readouts that are kept on disk."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nnsight_vae import datasets
from nnsight_vae._factor_heads import Heads, looks_discrete
from nnsight_vae._regressor import line_of
from nnsight_vae.causal import SCM, Mechanism
from nnsight_vae.errors import DataError, NnsightVaeWarning, ReadoutError
from nnsight_vae.readouts import Factors, Readout

NAMES = ("kind", "level")


def world(n=900, seed=0, noise=0.05):
    """Kind: which of three rows is lit (2 is commonest); level: how bright the fourth is."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.multinomial(torch.tensor([0.2, 0.3, 0.5]), n, replacement=True, generator=generator)
    level = torch.rand(n, generator=generator)
    images = torch.zeros(n, 1, 4, 8)
    images[torch.arange(n), 0, kind] = 1.0
    images[:, 0, 3] = level[:, None]
    images = images + noise * torch.randn(images.shape, generator=generator)
    return images, torch.stack([kind.float(), level], dim=1)


@pytest.fixture(scope="module")
def fitted():
    return Factors.fit(*world(), NAMES, discrete=["kind"], steps=400)


# ------------------------------------------------------------------ classes
def test_a_discrete_factor_is_classified_and_scored_against_chance(fitted):
    accuracy, chance = fitted.accuracy["kind"]
    assert accuracy > 0.98
    assert chance == pytest.approx(0.5, abs=0.1)
    assert fitted.reliability["kind"] == pytest.approx((accuracy - chance) / (1 - chance))
    assert set(fitted.accuracy) == {"kind"}
    assert "kind (accuracy 1.000, chance" in repr(fitted)


def test_its_classes_are_probabilities_of_the_true_kind(fitted):
    images, factors = world(seed=5)
    classes = fitted.classes("kind")
    assert isinstance(classes, Readout)
    assert classes.names == ("kind=0", "kind=1", "kind=2")
    shown = classes(images)
    torch.testing.assert_close(shown.sum(1), torch.ones(len(images)))
    assert float((shown.argmax(1) == factors[:, 0]).float().mean()) > 0.98
    assert torch.equal(classes["kind=2"](images), shown[:, [2]])


def test_the_number_of_a_discrete_factor_is_its_expected_value(fitted):
    images, _ = world(40, seed=6)
    expected = fitted.classes("kind")(images) @ torch.arange(3.0)
    torch.testing.assert_close(fitted.predict(images)[:, 0], expected)
    torch.testing.assert_close(fitted(images)[:, 0], (expected - fitted.mean[0]) / fitted.sd[0])
    only = fitted[["level", "kind"]]
    torch.testing.assert_close(only(images), fitted(images)[:, [1, 0]])
    torch.testing.assert_close(only.classes("kind")(images), fitted.classes("kind")(images))
    torch.testing.assert_close(fitted["kind"](images.double()).float(), fitted(images)[:, [0]])


def test_gradients_of_a_discrete_factor_are_those_of_its_number(fitted):
    images = world(2, seed=7, noise=0.3)[0].double().requires_grad_()
    assert torch.autograd.gradcheck(fitted["kind"], images, eps=1e-5, atol=1e-4)


def test_classes_survive_the_disk(fitted, tmp_path):
    images, _ = world(20, seed=8)
    fitted.save(tmp_path / "r.safetensors")
    loaded = Factors.load(tmp_path / "r.safetensors")
    assert torch.equal(loaded(images), fitted(images))
    assert loaded.heads == fitted.heads
    assert loaded.calibration == fitted.calibration
    assert loaded.accuracy == fitted.accuracy


def test_a_discrete_factor_that_cannot_be_seen_is_refused():
    images, factors = world()
    blank = torch.cat([torch.zeros_like(images[:, :, :3]), images[:, :, 3:]], dim=2)
    with pytest.raises(ReadoutError, match=r"reliability below 0\.8 for kind"):
        Factors.fit(blank, factors, NAMES, discrete=["kind"], steps=100)
    allowed = Factors.fit(blank, factors, NAMES, discrete=["kind"], steps=100, allow_unreliable=True)
    assert allowed.reliability["kind"] == pytest.approx(0, abs=0.1)  # it tells the commonest, as chance does


def test_kinds_read_as_amounts_are_warned_of_and_amounts_read_as_kinds_refused(fitted):
    images, factors = world(100)
    with pytest.warns(NnsightVaeWarning, match=r"kind takes a few whole numbers .* discrete=\['kind'\]"):
        Factors.fit(images, factors, NAMES, steps=2, allow_unreliable=True)
    Factors.fit(images, factors, NAMES, discrete=(), steps=2, allow_unreliable=True)  # amounts: no warning
    with pytest.raises(ReadoutError, match="'level' takes 100 values, which is a continuous factor"):
        Factors.fit(images, factors, NAMES, discrete=["level"], steps=10**9)
    with pytest.raises(ReadoutError, match=r"discrete=\['colour'\]: no such factor"):
        Factors.fit(images, factors, NAMES, discrete=["colour"], steps=10**9)
    with pytest.raises(ReadoutError, match="'level' was fitted as a continuous amount"):
        fitted.classes("level")
    with pytest.raises(ReadoutError, match="no target 'colour'"):
        fitted.classes("colour")
    columns = torch.tensor([[0.0, 0, 0.5, 1], [1, 1, 1.5, 2], [2, 1, 0.5, 3]])
    assert looks_discrete(columns, ["three", "binary", "halves", "from one"]) == ["three"]


def test_the_loss_is_squared_error_and_cross_entropy_by_factor():
    heads = Heads((None, (0.0, 5.0)))
    raw, factors = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([[1.0, 5.0], [2, 0]] * 3)
    targets = heads.targets(factors, torch.tensor([1.0, 0]), torch.tensor([2.0, 1]))
    assert targets.tolist() == [[0, 1], [0.5, 0]] * 3
    squared = ((raw[:, 0] - targets[:, 0]) ** 2).mean()
    entropy = -raw[:, 1:].log_softmax(1)[torch.arange(6), targets[:, 1].long()].mean()
    torch.testing.assert_close(heads.loss(raw, targets), (squared + entropy) / 2)


def test_worlds_state_their_discrete_factors():
    assert datasets.load("room").discrete == ("shape",)
    assert datasets.load("independent_sprites").discrete == ("shape",)
    assert datasets.load("pendulum").discrete == ()
    coin = SCM(
        {"shape": Mechanism.categorical((0, 1), (0.5, 0.5)), "x": Mechanism.additive((), lambda p: 0.0, _uniform)}
    )
    still = {"scale": 1.0, "orientation": 0.0, "y": 0.5}
    data = datasets.Procedural.drawn("coin", coin, datasets.SPRITES, still)
    assert data.discrete == ("shape",)
    with pytest.raises(DataError, match="takes whole numbers only"):
        data.do(2, shape=0.5)


def _uniform(rng, n):
    return rng.random(n)


# ------------------------------------------------------------------ calibration
def test_the_line_of_a_readout_on_the_truth_is_least_squares():
    rng = np.random.default_rng(0)
    true, read = rng.normal(size=(2, 50, 2))
    lines = line_of(torch.from_numpy(read), torch.from_numpy(true))
    for j, line in enumerate(lines):
        assert line == pytest.approx(tuple(np.polyfit(true[:, j], read[:, j], 1)))
    assert line_of(torch.zeros(3, 1), torch.ones(3, 1)) == [None]


def test_effects_are_not_too_small_where_images_are_noisy():
    """Seen through noise, least squares answers with a slope of its R2; held-out calibration takes it back to 1."""
    images, factors = world(4000, noise=0.6)
    level = factors[:, 1:]
    readout = Factors.fit(images, level, ["level"], steps=500, augment=False, min_reliability=0.3)
    fresh, truth = world(4000, seed=9, noise=0.6)
    z = (truth[:, 1:] - readout.mean) / readout.sd
    ((slope, intercept),) = line_of(readout(fresh), z)
    assert readout.reliability["level"] < 0.8  # uncorrected, every effect would be a fifth too small, or more
    assert slope == pytest.approx(1, abs=0.06)
    assert intercept == pytest.approx(0, abs=0.06)
    assert readout.calibration["level"] == pytest.approx((slope, intercept), abs=0.1)
    assert (readout.record["n_calibrated"], readout.record["n_held_out"]) == (400, 400)


def test_what_is_mostly_noise_is_not_blown_up():
    images, factors = world(600)
    unseen = torch.rand(600, 1, generator=torch.Generator().manual_seed(3))
    readout = Factors.fit(images, unseen, ["unseen"], steps=50, allow_unreliable=True)
    assert float(readout(images).abs().max()) < 3
    assert readout.calibration["unseen"][0] < 0.5
    few = Factors.fit(images[:200], factors[:200, 1:], ["level"], steps=20, allow_unreliable=True)
    assert (few.record["n_calibrated"], few.record["n_held_out"]) == (0, 40)  # too few for both


def test_the_bundled_readout_is_calibrated():
    data = datasets.load("pendulum")
    readout = data.readout()
    for batch in (data.sample(1000, seed=77), data.sample_independent(1000, seed=78)):
        for slope, intercept in line_of(readout(batch.images), (batch.factors - readout.mean) / readout.sd):
            assert slope == pytest.approx(1, abs=0.02)
            assert intercept == pytest.approx(0, abs=0.02)


# ------------------------------------------------------------------ kept on disk
@pytest.fixture
def arrays():
    images, factors = world(300, noise=0.0)
    data = datasets.from_arrays(images, factors[:, 1:].numpy(), names=("level",), name="levels")
    return data, images


def test_a_readout_is_fitted_once_and_read_from_its_file_ever_after(arrays, tmp_path):
    data, images = arrays
    file = tmp_path / "levels.safetensors"
    first = data.readout(file=file)
    again = datasets.from_arrays(images, np.random.default_rng(0).random((300, 1)), names=("level",), name="levels")
    read = again.readout(file=file, progress=lambda done, total: pytest.fail("fitted again"))
    assert torch.equal(read(images), first(images))
    assert read.record["dataset"] == "levels"
    in_memory = data.readout(file=tmp_path / "copy", progress=lambda done, total: pytest.fail("fitted again"))
    assert torch.equal(in_memory(images), first(images))
    assert (tmp_path / "copy").exists()


def test_the_file_of_another_dataset_is_refused(arrays, tmp_path):
    data, images = arrays
    file = tmp_path / "levels.safetensors"
    data.readout(file=file)
    other = datasets.from_arrays(images, np.random.default_rng(0).random((300, 1)), names=("level",), name="others")
    with pytest.raises(DataError, match="holds a readout of 'levels'"):
        other.readout(file=file)
    renamed = datasets.from_arrays(images, np.random.default_rng(0).random((300, 1)), names=("height",), name="levels")
    with pytest.raises(DataError, match="holds a readout of 'levels'"):
        renamed.readout(file=file)
    with pytest.raises(DataError, match="Cannot write"):
        data.readout(file=tmp_path / "no" / "folder")
