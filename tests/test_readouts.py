"""Readouts: what each target reads, how targets are selected, and when a learned readout refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from vaes import all_vaes, images

import nnsight_vae as nv
from nnsight_vae._regressor import build_regressor, degrade, gaussian_blur, r_squared
from nnsight_vae.errors import DataError, ReadoutError
from nnsight_vae.reading import described, reads
from nnsight_vae.readouts import Factors, Latents, Pixels, Readout, Region, select


def random(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- readouts that only look


def test_pixels_names_say_where_each_column_comes_from():
    image = random(2, 2, 3, 4)
    readout = Pixels((2, 3, 4))
    values = readout(image)
    assert len(readout.names) == 24
    for name, column in zip(readout.names, values.T, strict=True):
        c, i, j = map(int, name.removeprefix("pixel[").rstrip("]").split(","))
        assert torch.equal(column, image[:, c, i, j])


def test_regions_are_means_over_their_rectangles_and_all_channels():
    image = random(3, 2, 8, 8)
    readout = Region({"box": (slice(1, 4), slice(2, 8)), "last row": (-1, slice(None)), "corner": (0, 0)})
    expected = [image[:, :, 1:4, 2:8].mean((1, 2, 3)), image[:, :, -1].mean((1, 2)), image[:, :, 0, 0].mean(1)]
    torch.testing.assert_close(readout(image), torch.stack(expected, dim=1))


def test_latents_are_read_from_mu_and_everything_else_from_the_output():
    mu = random(4, 3)
    assert torch.equal(Latents(3)(mu), mu)
    assert reads(Latents(3)) == reads(Latents(3)["latent.mu[1]"]) == "latent.mu"
    assert reads(Pixels((1, 2, 2))) == "output"


def test_a_spatial_latent_is_read_position_by_position_under_the_names_its_reencoding_has():
    mu = random(5, 2, 3, 4)
    readout = Latents((2, 3, 4))
    for name, column in zip(readout.names, readout(mu).T, strict=True):
        k, i, j = map(int, name.removeprefix("latent.mu[").replace("]@", ",").split(","))
        assert torch.equal(column, mu[:, k, i, j])
    model = all_vaes()["residual"]
    vae, x = nv.VAE(model), images(model, 3)
    mu = vae.encode(x).mu
    spatial = Latents(tuple(mu.shape[1:]))
    assert spatial.names == nv.readouts.Reencoded(vae).names
    pairs = nv.Pairs(x, images(model, 3, seed=1))
    name = spatial.names[5]
    te = nv.mediate(vae, pairs, "input", readout=spatial[name]).te
    change = (vae.encode(pairs.source).mu - mu).flatten(1)[:, 5]
    np.testing.assert_allclose(te.values[0, 0], change.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "wrong", [all_vaes()["mlp"], None, 8.0, "8", 0, (), (4, 0)], ids=lambda each: type(each).__name__
)
def test_latents_asks_for_a_number_of_latents_and_shows_how(wrong):
    with pytest.raises(
        ReadoutError, match=r"Latents.* got .*(expected the number of latents, e.g. Latents\(8\)|e.g. 8, or \()"
    ):
        Latents(wrong)
    assert (repr(Latents((8,))), repr(Latents((4, 8, 8)))) == ("Latents(8)", "Latents((4, 8, 8))")
    assert Latents((8,)).names == Latents(8).names


def test_an_object_with_names_and_a_call_is_a_readout():
    class Brightness:
        names = ("brightness", "contrast")

        def __call__(self, images):
            return torch.stack([images.mean((1, 2, 3)), images.std((1, 2, 3))], dim=1)

    image = random(2, 1, 4, 4)
    assert isinstance(Brightness(), Readout)
    assert not isinstance(torch.sum, Readout)
    assert reads(Brightness()) == "output"
    assert torch.equal(select(Brightness(), "contrast")(image), image.std((1, 2, 3))[:, None])


@pytest.mark.parametrize("readout", [Pixels((1, 2, 2)), Region({"a": (0, 0), "b": (1, 1), "c": (0, 1)})])
def test_selecting_is_taking_columns_in_the_order_asked_for(readout):
    image = random(3, 1, 2, 2)
    chosen = readout[[readout.names[2], readout.names[0]]]
    assert chosen.names == (readout.names[2], readout.names[0])
    assert torch.equal(chosen(image), readout(image)[:, [2, 0]])
    assert torch.equal(chosen[readout.names[0]](image), readout(image)[:, [0]])


def test_a_repr_says_what_is_read_and_a_selection_says_of_what():
    region = Region({"box": (slice(1, 4), slice(None, -2)), "row": (-1, slice(0, 8, 2))})
    assert repr(region) == "Region(box 1:4 x :-2, row -1: x 0:8:2)"
    assert repr(region["row"]) == "Region(box 1:4 x :-2, row -1: x 0:8:2)[row]"
    many = Pixels((1, 4, 4))
    assert repr(select(many, many.names)).endswith("pixel[0,2,3], ... (16 in all)]")


def test_results_describe_a_readout_by_its_repr_where_that_says_more_than_its_class():
    class Own(torch.nn.Module):
        names = ("own",)

    class Plain:
        names = ("a", "b")

        def __call__(self, reconstruction):
            return reconstruction.flatten(1)[:, :2]

    assert described(Own()) == "Own"
    assert described(Plain()) == "Plain"
    assert repr(select(Plain(), "b")) == described(select(Plain(), "b")) == "Plain[b]"
    assert described(Latents(2)) == "Latents(2)"


def test_an_unreliable_target_says_so_wherever_its_readout_is_recorded(fitted):
    allowed = Factors.fit(*world(), NAMES, steps=600, allow_unreliable=True)
    assert described(allowed).count("unreliable") == len(allowed.unreliable) == 1
    assert f"unseen (R2 {allowed.reliability['unseen']:.3f}, unreliable)" in described(allowed)
    assert "unreliable" not in described(fitted[[name for name in fitted.names if name not in fitted.unreliable]])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("x", "no target 'x'. It has: pixel"),
        ([], "none asked for"),
        (["pixel[0,0,0]"] * 2, "repeat"),
        (3, "no target 3"),
    ],
)
def test_targets_that_cannot_be_selected_are_refused(names, message):
    with pytest.raises(ReadoutError, match=message):
        Pixels((1, 4, 4))[names]


@pytest.mark.parametrize("shape", [(), (0, 2), (1, -1), (1.0, 2), 64, "16"])
def test_shapes_that_are_not_positive_integers_are_refused(shape):
    with pytest.raises(ReadoutError, match="positive integers"):
        Pixels(shape)


@pytest.mark.parametrize(
    "regions",
    [{}, [("a", (0, 1))], {"a": slice(0, 2)}, {"a": (slice(0, 2),)}, {"a": ("0:2", 1)}, {"a": (slice(0, 2, 0), 1)}],
)
def test_ill_formed_regions_are_refused(regions):
    with pytest.raises(ReadoutError, match="Region"):
        Region(regions)


def test_a_region_outside_the_image_is_refused_rather_than_nan():
    with pytest.raises(ReadoutError, match="'far' is empty in an image of \\(4, 4\\)"):
        Region({"far": (slice(9, 12), slice(0, 2))})(random(1, 1, 4, 4))


@pytest.mark.parametrize(
    ("readout", "values"),
    [(Pixels((1, 4, 4)), random(2, 3, 4, 4)), (Latents(3), random(2, 4)), (Region({"a": (0, 0)}), random(2, 16))],
)
def test_an_output_of_another_shape_is_refused(readout, values):
    with pytest.raises(ReadoutError, match="got"):
        readout(values)


# ---------------------------------------------------------------- the learned readout


def world(n=800, seed=0):
    """Images with a bright row whose intensity and height are the factors; the third factor cannot be seen."""
    draws = torch.rand(n, 3, generator=torch.Generator().manual_seed(seed))
    rows = torch.arange(8.0).reshape(1, 1, 8, 1)
    bump = torch.exp(-0.5 * (rows - (2 + 3 * draws[:, 1].reshape(-1, 1, 1, 1))) ** 2)
    images = (0.2 + 0.8 * draws[:, 0].reshape(-1, 1, 1, 1)) * bump.expand(-1, 1, -1, 8)
    return images.contiguous(), draws * torch.tensor([1.0, 10.0, 1.0]) + 5


NAMES = ("brightness", "row", "unseen")


@pytest.fixture(scope="module")
def fitted():
    return Factors.fit(*world(), NAMES, steps=600, allow_unreliable=True)


def test_fitting_never_touches_the_global_random_state():
    images, factors = world(200)
    state = torch.random.get_rng_state()
    readout = Factors.fit(images, factors, NAMES, steps=5, allow_unreliable=True)
    readout["row"]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_same_seed_gives_the_same_readout_and_another_seed_another():
    images, factors = world(200)
    one, two, three = (
        Factors.fit(images, factors, NAMES, steps=20, seed=seed, allow_unreliable=True)(images) for seed in (0, 0, 1)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def test_held_out_reliability_agrees_with_fresh_images(fitted):
    fresh = fitted.reliability_on(*world(seed=9))
    for name in ("brightness", "row"):
        assert fitted.reliability[name] > 0.95
        assert fresh[name] == pytest.approx(fitted.reliability[name], abs=0.03)
    assert fitted.reliability["unseen"] < 0.2
    assert fitted.unreliable == ("unseen",)


def test_outputs_are_standard_deviations_of_the_factor(fitted):
    images, factors = world(seed=9)
    shown = fitted(images)[:, :2]
    expected = (factors[:, :2] - fitted.mean[:2]) / fitted.sd[:2]
    assert (shown - expected).abs().mean() < 0.15
    torch.testing.assert_close(fitted.predict(images), fitted(images) * fitted.sd + fitted.mean)
    torch.testing.assert_close(fitted.sd[:2], torch.tensor([1.0, 10.0]) * 12**-0.5, rtol=0.1, atol=0)


def test_a_factor_that_cannot_be_seen_is_refused_unless_allowed():
    with pytest.raises(ReadoutError, match=r"below 0.8 for unseen -?0\.\d\d\. .*allow_unreliable=True"):
        Factors.fit(*world(), NAMES, steps=600)


def test_reliability_is_none_where_the_factor_does_not_vary(fitted):
    images, factors = world(60)
    factors[:, 1] = 3
    assert fitted.reliability_on(images, factors)["row"] is None


def test_gradients_reach_the_image_and_not_the_weights(fitted):
    images = world(5)[0].requires_grad_()
    fitted(images).sum().backward()
    assert images.grad.abs().sum() > 0
    assert not any(weight.requires_grad for weight in fitted.network.parameters())
    assert not fitted.network.training


def test_the_gradient_is_that_of_the_function(fitted):
    image = world(1)[0].double().requires_grad_()
    assert torch.autograd.gradcheck(fitted, image, fast_mode=True)


def test_dtype_follows_the_images_and_the_readout_is_unchanged(fitted):
    images = world(5)[0]
    before = fitted(images)
    assert fitted(images.double()).dtype == torch.float64
    assert torch.equal(fitted(images), before)
    torch.testing.assert_close(fitted(images.double()).float(), before)


def test_selecting_targets_keeps_their_outputs_and_their_records(fitted):
    images = world(5)[0]
    part = fitted[["row", "brightness"]]
    assert isinstance(part, Factors)
    assert part.names == ("row", "brightness")
    torch.testing.assert_close(part(images), fitted(images)[:, [1, 0]])
    torch.testing.assert_close(part.sd, fitted.sd[[1, 0]])
    assert part.reliability == {name: fitted.reliability[name] for name in part.names}
    assert part.unreliable == ()
    torch.testing.assert_close(fitted["row"](images), fitted(images)[:, [1]])


def test_a_readout_survives_the_disk(fitted, tmp_path):
    images = world(5)[0]
    fitted.save(tmp_path / "r.safetensors")
    loaded = Factors.load(tmp_path / "r.safetensors", allow_unreliable=True)
    assert torch.equal(loaded(images), fitted(images))
    assert (loaded.names, loaded.reliability, loaded.record) == (fitted.names, fitted.reliability, fitted.record)
    assert torch.equal(loaded.predict(images), fitted.predict(images))
    assert [path.name for path in tmp_path.iterdir()] == ["r.safetensors"]
    with pytest.raises(ReadoutError, match="unseen"):
        Factors.load(tmp_path / "r.safetensors")


def test_a_selected_readout_survives_the_disk(fitted, tmp_path):
    images = world(5)[0]
    fitted[["row"]].save(tmp_path / "r.safetensors")
    torch.testing.assert_close(Factors.load(tmp_path / "r.safetensors")(images), fitted(images)[:, [1]])


def test_a_failed_save_leaves_nothing_and_names_the_place(fitted, tmp_path):
    with pytest.raises(DataError, match="Cannot write"):
        fitted.save(tmp_path / "no" / "such" / "folder.safetensors")
    (tmp_path / "taken").mkdir()
    with pytest.raises(DataError, match="Cannot write"):
        fitted.save(tmp_path / "taken")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def broken(path, fitted, change):
    fitted.save(path)
    tensors = load_file(path)
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["readout"])
    change(tensors, header)
    save_file(tensors, path, metadata={"readout": json.dumps(header)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, header: header.update(schema="other@1"), "schema 'other@1'"),
        (lambda tensors, header: header.pop("names"), "not a readout"),
        (lambda tensors, header: header.update(names=["one"]), "not a readout"),
        (lambda tensors, header: tensors.pop("network.1.weight"), "not a readout"),
        (lambda tensors, header: header.update(image_shape=[1, 64, 64]), "not a readout"),
        (lambda tensors, header: tensors.pop("sd"), "not a readout"),
        (lambda tensors, header: header.pop("reliability"), "not a readout"),
    ],
)
def test_files_that_are_not_readouts_are_refused(fitted, tmp_path, change, message):
    broken(tmp_path / "r.safetensors", fitted, change)
    with pytest.raises(DataError, match=message):
        Factors.load(tmp_path / "r.safetensors", allow_unreliable=True)


def test_missing_unreadable_and_foreign_files_are_refused(tmp_path):
    (tmp_path / "text").write_text("not tensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign")
    for name in ("text", "missing"):
        with pytest.raises(DataError, match="cannot read"):
            Factors.load(tmp_path / name)
    with pytest.raises(DataError, match="not a readout"):
        Factors.load(tmp_path / "foreign")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images, factors: (images.double(), factors), "float64"),
        (lambda images, factors: (images, factors[:, :2]), "one row per image and one column per name"),
        (lambda images, factors: (images, factors[:-1]), "one row per image"),
        (lambda images, factors: (images[:20], factors[:20]), "at least 50"),
        (lambda images, factors: (images * float("nan"), factors), "images hold NaN"),
        (lambda images, factors: (images, factors * float("inf")), "factors hold NaN"),
        (lambda images, factors: (images, factors * 0), "brightness, row, unseen never varies"),
    ],
)
def test_training_data_that_do_not_fit_are_refused_before_training(change, message):
    with pytest.raises(ReadoutError, match=message):
        Factors.fit(*change(*world(60)), NAMES, steps=10**9)


def test_images_of_another_size_are_refused(fitted):
    with pytest.raises(ReadoutError, match=r"shape \(n, 1, 8, 8\); got \(2, 1, 9, 9\)"):
        fitted(random(2, 1, 9, 9))


def test_uint8_images_are_read_as_the_floats_they_stand_for(fitted):
    images = (world(20)[0] * 255).round().to(torch.uint8)
    assert torch.equal(fitted.predict(images), fitted.predict(images / 255))


def test_progress_counts_to_the_last_step():
    seen = []
    Factors.fit(
        *world(60), NAMES, steps=120, allow_unreliable=True, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(50, 120), (100, 120), (120, 120)]


# ---------------------------------------------------------------- the network behind it


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 28, 28), (3, 33, 50), (1, 16, 16), (1, 8, 8), (12,)])
def test_a_regressor_can_be_built_for_any_shape(shape):
    assert build_regressor(shape, 3)(random(2, *shape)).shape == (2, 3)


def test_blur_keeps_the_mean_of_a_centred_blob_and_has_the_variance_asked_for():
    image = torch.zeros(1, 1, 33, 33)
    image[0, 0, 16, 16] = 1
    blurred = gaussian_blur(image, 2.0)
    offset = torch.arange(33.0) - 16
    assert blurred.sum() == pytest.approx(1, abs=1e-5)
    assert (blurred.sum((0, 1, 2)) * offset**2).sum() == pytest.approx(4, rel=0.05)


def test_blur_of_a_constant_image_is_the_constant():
    torch.testing.assert_close(gaussian_blur(torch.full((2, 3, 8, 8), 0.3), 1.5), torch.full((2, 3, 8, 8), 0.3))


def test_degrading_leaves_the_second_half_of_a_batch_alone():
    images = random(8, 1, 16, 16)
    worse = degrade(images, torch.Generator().manual_seed(0))
    assert torch.equal(worse[4:], images[4:])
    assert not torch.equal(worse[:4], images[:4])


def test_r_squared_equals_the_definition_of_scikit_learn():
    from sklearn.metrics import r2_score

    true, predicted = random(50, 2), random(50, 2, seed=1)
    expected = r2_score(true.numpy().astype(np.float64), predicted.numpy().astype(np.float64), multioutput="raw_values")
    np.testing.assert_allclose(r_squared(predicted, true), expected, rtol=1e-9)
