"""Pictures of attributions: what is drawn and what it says, not its pixels; and animations that open."""

from __future__ import annotations

import io
import warnings

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from vaes import ConvVAE, seeded

import nnsight_vae as nv
from nnsight_vae.attribution import (
    DecoderJacobian,
    Jacobian,
    LatentIntegratedGradients,
    Shift,
    plot_attribution_atlas,
    plot_jacobian,
    save_animation,
    visualize,
)
from nnsight_vae.attribution.pictures import DEAD, full_colour
from nnsight_vae.plots import save_figure


def pictures(n=3, channels=1, size=8):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(0))


def random_maps(n=3, targets=2, channels=1, size=8):
    return torch.randn(n, targets, channels, size, size, generator=torch.Generator().manual_seed(1))


def mapped(axes):
    """The array of the map in some axes."""
    return np.asarray(axes.images[0].get_array())


# ---------------------------------------------------------------------- atlas
def test_the_atlas_has_a_column_an_input_and_a_row_a_target_on_one_scale():
    maps = random_maps(channels=3)
    figure, axes = plot_attribution_atlas(pictures(channels=3), maps, ["angle", "light"])
    assert isinstance(figure, Figure)
    assert axes.shape == (3, 3)
    for k in range(2):
        limit = full_colour(maps[:, k].sum(1).numpy())
        for i in range(3):
            assert np.allclose(mapped(axes[k + 1, i]), maps[i, k].sum(0))
            assert axes[k + 1, i].images[0].get_clim() == pytest.approx((-limit, limit))
        assert axes[k + 1, 0].get_ylabel() == f"{('angle', 'light')[k]}\n±{limit:.2g}"
    assert np.allclose(mapped(axes[0, 1]), pictures(channels=3)[1].permute(1, 2, 0))


def test_a_few_extreme_pixels_do_not_fade_the_others():
    values = np.ones((40, 40))
    values[0, 0] = 1e6
    assert full_colour(values) == pytest.approx(1.0)
    assert full_colour(np.zeros((4, 4))) == 1.0
    alone = np.zeros((100, 100))
    alone[3, 3] = -7.0
    assert full_colour(alone) == 7.0


def test_dead_rows_are_grey_and_say_so():
    _, axes = plot_attribution_atlas(pictures(), random_maps(), ["a", "b"], dead=[1])
    assert not any(cell.images for cell in axes[2])
    assert {mpl.colors.to_hex(cell.get_facecolor()) for cell in axes[2]} == {DEAD}
    assert axes[2, 0].get_ylabel() == "b\ndead"
    assert all(cell.images for cell in axes[1])


def test_names_and_collapsed_latents_come_with_the_maps():
    model = seeded(ConvVAE(channels=1))
    with torch.no_grad():
        for layer in (model.fc_mu, model.fc_logvar):
            layer.weight[2], layer.bias[2] = 0, 0
    vae, x = nv.VAE(model), pictures(size=16)
    maps = LatentIntegratedGradients(vae).attribute(x, n_steps=60)
    _, axes = plot_attribution_atlas(x, maps)
    labels = [axes[k + 1, 0].get_ylabel() for k in range(5)]
    assert labels[2] == "latent.mu[2]\ndead"
    assert sum(label.endswith("dead") for label in labels) == 1
    assert labels[4].startswith("latent.mu[4]\n±")


@pytest.mark.parametrize("target", [3, "latent.mu[3]"])
def test_maps_of_one_target_are_one_row(target):
    vae, x = nv.VAE(seeded(ConvVAE())), pictures(channels=3, size=16)
    method = LatentIntegratedGradients(vae)
    _, axes = plot_attribution_atlas(x, method.attribute(x, target=target, n_steps=60))
    _, of_all = plot_attribution_atlas(x, method.attribute(x, n_steps=60))
    assert axes.shape == (2, len(x))
    assert axes[1, 0].get_ylabel() == of_all[4, 0].get_ylabel()
    np.testing.assert_allclose(axes[1, 2].images[0].get_array(), of_all[4, 2].images[0].get_array(), atol=1e-6)


@pytest.mark.parametrize(
    ("images", "maps", "names", "message"),
    [
        (pictures(), random_maps(n=2), None, r"maps have shape \(2, 2, 1, 8, 8\)"),
        (pictures(), random_maps(size=4), None, "maps have shape"),
        (pictures(), random_maps()[:, 0, 0], None, "maps have shape"),
        (pictures(), random_maps(), ["a"], "1 names for 2 targets"),
        (pictures(), random_maps() * torch.nan, None, "NaN"),
        (pictures(channels=2), random_maps(), None, "1 or 3 channels"),
    ],
)
def test_maps_that_do_not_fit_are_refused(images, maps, names, message):
    with pytest.raises(nv.DataError, match=message):
        plot_attribution_atlas(images, maps, names)


# ---------------------------------------------------------------------- Jacobian sheet
def sheet_of(columns, names=None):
    names = names or tuple(f"latent.z[{k}]" for k in range(columns.shape[1]))
    return plot_jacobian(Jacobian(columns, names))


def test_the_sheet_shows_columns_by_size_with_lengths_and_cosines():
    vae = nv.VAE(seeded(ConvVAE()))
    found = DecoderJacobian(vae).at(torch.randn(2, 5, generator=torch.Generator().manual_seed(0)))
    figure, axes = plot_jacobian(found, example=1)
    size = found.norms.square().mean(0).sqrt()
    order = size.argsort(descending=True).tolist()
    titles = [cell.get_title() for cell in axes["columns"]]
    assert titles == [f"z[{k}]\n{float(found.norms[1, k]):.3g}" for k in order]
    assert np.allclose(mapped(axes["columns"][0]), found.columns[1, order[0]].sum(0), atol=1e-6)
    steps = found.singular()
    assert [cell.get_title() for cell in axes["directions"]] == [
        f"\N{GREEK SMALL LETTER SIGMA} {float(s):.3g}" for s in steps.values[1]
    ]
    assert np.allclose(mapped(axes["directions"][2]), steps.outputs[1, 2].sum(0), atol=1e-6)
    assert np.allclose([bar.get_width() for bar in axes["norms"].patches], size[order])
    dots = axes["norms"].collections[0].get_offsets()  # every code, and not only their root mean square
    assert np.allclose(
        np.asarray(dots), [[found.norms[i, k], place] for i in range(2) for place, k in enumerate(order)]
    )
    assert np.allclose(mapped(axes["cosines"]), found.cosines()[1][np.ix_(order, order)])
    assert len(axes["cosines"].texts) == 25
    assert isinstance(figure, Figure)


def test_dead_latents_have_no_column_and_no_cosine_on_the_sheet():
    columns = torch.randn(1, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    columns[:, 1] = 0
    _, axes = sheet_of(columns)
    assert axes["columns"][2].get_title() == "z[1]\ndead"
    assert not axes["columns"][2].images
    assert np.ma.getmaskarray(axes["cosines"].images[0].get_array())[2].all()
    assert len(axes["cosines"].texts) == 4


def test_many_latents_are_cut_and_the_sheet_says_how_many():
    _, axes = sheet_of(torch.randn(1, 20, 1, 4, 4, generator=torch.Generator().manual_seed(0)))
    assert len(axes["columns"]) == 12
    assert "12 of 20 latents" in axes["norms"].get_xlabel()
    assert not axes["cosines"].texts
    _, axes = sheet_of(torch.randn(1, 6, 1, 2, 2, generator=torch.Generator().manual_seed(0)))
    assert [cell.get_visible() for cell in axes["directions"]] == [True] * 4 + [False] * 2  # rank 4
    assert " of 6 latents" not in axes["norms"].get_xlabel()
    assert axes["norms"].get_xlabel().endswith("(one code)")


def test_a_readouts_jacobian_and_a_code_that_is_not_there_are_refused():
    with pytest.raises(nv.DataError, match="a sheet shows images"):
        sheet_of(torch.zeros(1, 3, 2))
    with pytest.raises(nv.DataError, match="example=1"):
        plot_jacobian(Jacobian(torch.ones(1, 2, 1, 4, 4), ("a", "b")), example=1)


# ---------------------------------------------------------------------- animation
def frames_of(path):
    with Image.open(path) as opened:
        found = []
        for i in range(opened.n_frames):
            opened.seek(i)
            found.append(np.asarray(opened.convert("RGB")).astype(int))
        return found, opened.info


def colourful(steps=5, channels=3):
    """Frames that differ a lot, in few colours."""
    frames = torch.zeros(steps, channels, 8, 8)
    for i in range(steps):
        frames[i, :, :, : i + 1] = 1.0
        frames[i, 0, i] = 0.5
    return frames


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".GIF"])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_animation_runs_there_and_back_with_its_colours(tmp_path, suffix, channels):
    path = save_animation(colourful(channels=channels), tmp_path / f"shift{suffix}", milliseconds=100)
    found, info = frames_of(path)
    assert len(found) == 8
    wanted = [0, 1, 2, 3, 4, 3, 2, 1]
    for frame, i in zip(found, wanted, strict=True):
        assert frame.shape == (128, 128, 3)
        expected = (colourful(channels=channels)[i] * 255 + 0.5).int().expand(3, 8, 8).permute(1, 2, 0).numpy()
        assert np.abs(frame[8::16, 8::16] - expected).max() <= 2
    assert info["loop"] == 0
    assert info["duration"] == 100
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_gif_keeps_the_few_colours_of_small_things_on_a_plain_ground(tmp_path):
    ramp = torch.linspace(0, 1, 16)
    frames = torch.ones(6, 3, 64, 64)
    for i in range(6):
        frames[i, 0, 4 + i : 20 + i, 8:24] = ramp[:, None]
        frames[i, 1, 4 + i : 20 + i, 8:24] = ramp[None]
        frames[i, 2, 4 + i : 20 + i, 8:24] = i / 6
    found, _ = frames_of(save_animation(frames, tmp_path / "a.gif"))
    error = [
        np.abs(frame[1::2, 1::2] - (255 * frames[i]).permute(1, 2, 0).numpy()) for i, frame in enumerate(found[:6])
    ]
    assert np.mean(error) < 0.5


def test_an_example_of_a_shift_is_animated(tmp_path):
    frames = torch.stack([colourful(), 1 - colourful()])
    shift = Shift(frames, frames, torch.zeros(2, 5), "t", 1.0, torch.ones(2), torch.ones(2, dtype=torch.bool))
    found, _ = frames_of(save_animation(shift, tmp_path / "b.gif", example=1))
    assert np.abs(found[0][8::16, 8::16] - (255 * (1 - colourful()[0])).permute(1, 2, 0).numpy()).max() <= 2
    with pytest.raises(nv.DataError, match="example=2"):
        save_animation(shift, tmp_path / "b.gif", example=2)


def test_big_frames_are_not_enlarged(tmp_path):
    found, _ = frames_of(
        save_animation(torch.rand(2, 1, 130, 140, generator=torch.Generator().manual_seed(0)), tmp_path / "a.webp")
    )
    assert found[0].shape == (130, 140, 3)


@pytest.mark.parametrize(
    ("frames", "name", "milliseconds", "message"),
    [
        (colourful(), "a.mp4", 100, "written as .gif or .webp"),
        (colourful(1), "a.gif", 100, "one frame is no animation"),
        (colourful()[0], "a.gif", 100, "expected"),
        (colourful(), "a.gif", 5, "below 20"),
        (colourful(), "nowhere/a.gif", 100, "Cannot write"),
    ],
)
def test_what_cannot_be_animated_is_refused_and_leaves_no_file(tmp_path, frames, name, milliseconds, message):
    with pytest.raises(nv.DataError, match=message):
        save_animation(frames, tmp_path / name, milliseconds=milliseconds)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------- Captum's picture
def test_a_map_is_captums_in_our_colours_without_pyplot():
    import matplotlib.pyplot as plt

    open_figures = plt.get_fignums()
    attributions = random_maps(channels=3)[0, 0]
    _, axes = visualize(attributions, pictures(channels=3)[0], title="latent 3")
    values = attributions.sum(0).numpy()
    drawn = np.asarray(axes.images[-1].get_array())
    assert len(axes.images) == 2  # the map over the image
    assert np.array_equal(np.sign(drawn), np.sign(values))
    assert axes.images[-1].get_cmap().name == "lowers-raises"
    assert axes.images[-1].get_clim() == (-1, 1)
    assert axes.get_title() == "latent 3"
    assert plt.get_fignums() == open_figures
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, alone = visualize(1e-9 * attributions)  # tiny numbers are numbers
    assert np.allclose(np.asarray(alone.images[0].get_array()), drawn)
    _, positive = visualize(values, sign="positive", cmap="cividis")
    assert float(np.min(positive.images[0].get_array())) == 0
    assert positive.images[0].get_cmap().name == "cividis"


@pytest.mark.parametrize("method", ["heat_map", "blended_heat_map", "masked_image"])
@pytest.mark.parametrize("sign", ["positive", "absolute_value"])
def test_an_empty_map_is_drawn_and_says_so(method, sign):
    attributions = -random_maps()[0, 0].abs() if sign == "positive" else torch.zeros(1, 8, 8)
    figure, axes = visualize(attributions, pictures()[0], method=method, sign=sign, title="dead $z$")
    assert axes.get_title() == "dead $z$: no attribution"
    buffer = io.BytesIO()
    figure.savefig(buffer)
    assert buffer.tell() > 0
    _, bare = visualize(torch.zeros(8, 8))
    assert bare.get_title() == "no attribution"
    given = Figure()
    place = given.add_subplot()
    assert visualize(torch.zeros(8, 8), plt_fig_axis=(given, place)) == (given, place)


def test_maps_of_several_inputs_and_images_of_another_size_are_refused():
    with pytest.raises(nv.DataError, match="of one input"):
        visualize(random_maps()[0])
    with pytest.raises(nv.DataError, match=r"\(8, 8\) pixels, the image \(4, 4\)"):
        visualize(random_maps()[0, 0], pictures(size=4)[0])
    with pytest.raises(nv.DataError, match="NaN"):
        visualize(random_maps()[0, 0] * torch.nan)


def test_figures_save(tmp_path):
    figure, _ = plot_attribution_atlas(pictures(), random_maps(), ["a$b$", "c_d^e"])
    save_figure(figure, tmp_path / "atlas.png")
    save_figure(sheet_of(torch.randn(1, 3, 1, 4, 4), ("a$b$", "b", "c"))[0], tmp_path / "sheet.svg")
    assert all(p.stat().st_size > 1000 for p in tmp_path.iterdir())
