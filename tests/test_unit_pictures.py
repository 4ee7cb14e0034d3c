"""Pictures of units: each shows what it says it shows, whatever the model, and is a file that others read."""

import io

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from vaes import ConvVAE, all_vaes, images, seeded

import nnsight_vae as nv
from nnsight_vae import DataError
from nnsight_vae.circuits import thumbnails
from nnsight_vae.circuits.drawing.png import data_uri, png
from nnsight_vae.style import LOWERS, RAISES


@pytest.fixture(scope="module")
def vae():
    return nv.VAE(seeded(ConvVAE()))


@pytest.fixture(scope="module")
def x():
    return torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def pictures(vae, x):
    return thumbnails(vae, x)


def activation(vae, x, site):
    with torch.no_grad(), vae.trace(x):
        saved = vae.envoy_at(vae.layout(x).paths[site]).output.save()
    return saved.clone()


def near(picture, expected):
    return np.allclose(picture, expected, atol=1e-6)


def test_every_unit_of_every_site_has_a_picture_of_at_most_64_pixels_a_side(vae, x, pictures):
    units = {str(unit) for site in vae.layout(x).sites.values() for unit in site.units}
    assert set(pictures) == units | {"factor", "readout"}
    for picture in pictures.values():
        assert picture.shape[2] == 3
        assert picture.shape[0] <= 64
        assert np.isfinite(picture).all()
        assert picture.min() >= 0
        assert picture.max() <= 1 + 1e-6


def test_a_channel_shows_its_mean_over_the_inputs_blue_above_0_and_orange_below(vae, x, pictures):
    mean = activation(vae, x, "encoder.0").mean(0)[2].numpy()
    picture = pictures["encoder.0[2]"]
    assert picture.shape == (8, 8, 3)
    colour = {
        name: np.array([int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        for name, c in (("up", RAISES), ("down", LOWERS))
    }
    place = np.unravel_index(np.abs(mean).argmax(), mean.shape)
    assert near(picture[place], colour["up" if mean[place] > 0 else "down"])
    depth = np.abs(mean) / np.abs(mean).max()
    pale = 0xFB / 255
    assert near(picture[..., 0][mean > 0], (pale + depth * (colour["up"][0] - pale))[mean > 0])
    assert near(picture[..., 2][mean < 0], (pale + depth * (colour["down"][2] - pale))[mean < 0])


def test_a_channel_that_does_next_to_nothing_is_blank(x):
    model = seeded(ConvVAE())
    with torch.no_grad():
        model.encoder[0].weight[1] *= 1e-4
        model.encoder[0].bias[1] *= 1e-4
    picture = thumbnails(nv.VAE(model), x, nodes=["encoder.0[1]"])["encoder.0[1]"]
    assert near(picture, 0xFB / 255)


@pytest.mark.parametrize("site", ["latent.z", "latent.mu"])
def test_a_latent_shows_what_is_decoded_while_it_goes_from_minus_2_to_2(vae, x, pictures, site):
    z = vae.encode(x[:1]).mu.repeat(5, 1)
    z[:, 3] = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])
    strip = torch.cat(list(vae.decode(z)), dim=-1).movedim(0, -1).detach().numpy()
    assert near(pictures[f"{site}[3]"], strip)


def test_a_neuron_shows_the_inputs_in_which_it_is_lowest_and_highest(vae, x, pictures):
    level = activation(vae, x, "encoder.5")[:, 4]
    sides = [x[int(level.argmin())], x[int(level.argmax())]]
    assert near(pictures["encoder.5[4]"], torch.cat(sides, dim=-1).movedim(0, -1).numpy())


def test_ends_show_the_first_input_and_its_reconstruction(vae, x, pictures):
    reconstruction = vae(x[:1])[0].detach()
    assert near(pictures["factor"], x[0].movedim(0, -1).numpy())
    assert near(pictures["readout"], reconstruction.movedim(0, -1).numpy())
    assert near(pictures["input[1]"], np.repeat(x[0, 1, :, :, None].numpy(), 3, axis=2))
    assert near(pictures["output[2]"], np.repeat(reconstruction[2, :, :, None].numpy(), 3, axis=2))


def test_pictures_are_made_for_the_nodes_asked_for(vae, x, pictures):
    some = thumbnails(vae, x, nodes=["encoder.2[1]", "latent.z[0]", "readout:angle", "no such unit"])
    assert set(some) == {"encoder.2[1]", "latent.z[0]", "factor", "readout"}
    assert all(near(some[name], pictures[name]) for name in some)


@pytest.mark.parametrize("name", list(all_vaes()))
def test_every_kind_of_vae_has_pictures_and_is_left_as_it_was(name):
    model = all_vaes()[name]
    x, before = images(model, 3), {k: v.clone() for k, v in model.state_dict().items()}
    model.train()
    found = thumbnails(nv.VAE(model), x)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert bool(found) == (x.ndim == 4)  # vectors have no pictures
    assert all(np.isfinite(picture).all() and picture.ndim == 3 for picture in found.values())
    assert any(unit.startswith("latent.z[") for unit in found) == (x.ndim == 4)


def test_images_larger_than_64_pixels_are_averaged_down_and_values_outside_0_and_1_are_scaled(vae, x):
    shifted = thumbnails(vae, 4 * x - 2)["factor"]
    low, high = float(x[0].min()), float(x[0].max())
    assert near(shifted, (x[0].movedim(0, -1).numpy() - low) / (high - low))
    large = nv.VAE(nv.models.MLPVAE(image_shape=(1, 128, 96), latent=2, hidden=(4,)))
    big = torch.rand(2, 1, 128, 96)
    picture = thumbnails(large, big, nodes=["latent.z[0]"])["factor"]
    assert picture.shape == (64, 48, 3)
    assert near(picture[..., 0], big[0, 0].reshape(64, 2, 48, 2).mean((1, 3)).numpy())


def test_no_inputs_or_inputs_the_model_cannot_run_are_refused(vae, x):
    with pytest.raises(DataError, match="non-empty batch"):
        thumbnails(vae, x[:0])
    with pytest.raises(DataError, match=r"cannot run x of shape"):
        thumbnails(vae, x[:, :1])


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 2, 3)])
def test_an_independent_reader_reads_our_png(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    again = np.round(255 * imread(io.BytesIO(png(image)), format="png")).astype(np.uint8)
    assert np.array_equal(again[..., :3] if image.ndim == 3 else again, image)


def test_floats_are_clipped_and_rounded_and_8_bit_images_kept():
    uri, aspect = data_uri(torch.tensor([[-1.0, 0.5], [2.0, 0.999]]), "x")
    assert (uri, aspect) == data_uri(np.array([[0, 128], [255, 255]], dtype=np.uint8), "x")
    assert aspect == 1.0
