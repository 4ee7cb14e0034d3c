"""Published benchmark files: small ones in the exact formats are read as written; grids."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from benchmark_files import write_causal3dident, write_celeba, write_dsprites, write_norb, write_shapes3d
from PIL import Image

from nnsight_vae import datasets
from nnsight_vae.datasets import Grid, benchmarks
from nnsight_vae.datasets.grid import product
from nnsight_vae.errors import DataError


# ------------------------------------------------------------------ read as they were written
def test_dsprites_is_a_grid_of_black_and_white_images(tmp_path):
    images, table = write_dsprites(tmp_path / "dsprites.npz")
    data = datasets.load("dsprites", path=tmp_path / "dsprites.npz", cache=tmp_path / "cache")
    assert data.factors == ("shape", "scale", "orientation", "x", "y")
    assert data.sizes == {"shape": 3, "scale": 2, "orientation": 4, "x": 2, "y": 3}
    assert data.graph is not None
    assert not data.graph.edges
    batch = data.sample(len(images), seed=0)
    order = [int(np.flatnonzero((np.abs(table - row) < 1e-6).all(1))[0]) for row in batch.factors.numpy()]
    assert torch.equal(batch.images[:, 0], torch.from_numpy(images[order].astype(np.float32)))


def test_shapes3d_keeps_its_channels_and_factors(tmp_path):
    images, table = write_shapes3d(tmp_path / "3dshapes.h5")
    data = benchmarks.shapes3d(tmp_path / "3dshapes.h5", cache=tmp_path)
    moved = data.do(1, floor_hue=1.0, wall_hue=0.5, object_hue=0, scale=1, shape=0, orientation=1)
    row = int(np.flatnonzero((table == [1, 0.5, 0, 1, 0, 1]).all(1))[0])
    assert torch.equal(moved.images[0], torch.from_numpy(images[row].transpose(2, 0, 1) / np.float32(255)))


@pytest.mark.parametrize(("colors", "n"), [(6, 1_036_800), (4, 460_800)])
def test_mpi3d_takes_its_factors_from_its_order(tmp_path, colors, n):
    rows = np.arange(n, dtype=np.uint32).view(np.uint8).reshape(n, 1, 4)[:, :, None, :3]  # numbers, little end first
    images = np.concatenate([rows, np.full_like(rows, 9)], axis=2)  # one pixel high, two wide
    np.savez_compressed(tmp_path / "mpi3d_toy.npz", images=images)
    data = datasets.load("mpi3d", path=tmp_path / "mpi3d_toy.npz", cache=tmp_path, version="real")
    sizes = {"color": colors, "shape": colors, "size": 2, "camera_height": 3, "background": 3}
    assert (data.name, data.sizes) == ("mpi3d-real", sizes | {"horizontal": 40, "vertical": 40})
    image = data.do(1, color=1, shape=2, size=1, camera_height=0, background=2, horizontal=3, vertical=39).images[0]
    assert image.shape == (3, 1, 2)
    expected = np.ravel_multi_index((1, 2, 1, 0, 2, 3, 39), (colors, colors, 2, 3, 3, 40, 40))
    assert int((image[:, 0, 0] * 255).round() @ torch.tensor([1.0, 256.0, 65536.0])) == expected
    assert (image[:, 0, 1] * 255).round().tolist() == [9, 9, 9]


@pytest.mark.parametrize("ending", [".mat.gz", ".mat"])
def test_small_norb_joins_both_splits_and_keeps_one_camera(tmp_path, ending):
    images = write_norb(tmp_path, ending=ending)
    data = benchmarks.small_norb(tmp_path, size=12, cache=tmp_path / "cache")
    assert data.sizes == {"category": 2, "instance": 2, "elevation": 2, "azimuth": 2, "lighting": 1}
    batch = data.do(1, category=1, instance=5, elevation=3, azimuth=17, lighting=5)
    assert torch.equal(batch.images[0, 0], torch.from_numpy(images[-1, 0] / np.float32(255)))
    halved = benchmarks.small_norb(tmp_path, size=6, cache=tmp_path / "cache")
    mean = images[-1, 0].reshape(6, 2, 6, 2).mean((1, 3))
    shown = halved.do(1, category=1, instance=5, elevation=3, azimuth=17, lighting=5).images[0, 0]
    assert float((shown * 255 - torch.from_numpy(mean)).abs().max()) <= 1  # rounded once an axis


def test_celeba_crops_the_middle_and_codes_attributes_as_0_and_1(tmp_path):
    write_celeba(tmp_path)
    picture = Image.new("RGB", (178, 218), (0, 0, 0))
    picture.paste((255, 255, 255), (15, 35, 163, 183))  # the middle 148 x 148
    picture.save(tmp_path / "img_align_celeba" / "000001.png")
    data = benchmarks.celeba(tmp_path, size=16, cache=tmp_path / "cache")
    assert (data.factors, data.image_shape, data.n_images, data.graph) == (("Bald", "Smiling"), (3, 16, 16), 5, None)
    batch = data.sample(5)
    white = batch.images.amin((1, 2, 3)) == 1
    assert white.sum() == 1
    assert batch.factors[white].tolist() == [[0.0, 1.0]]
    assert batch.factors[:, 0].sum() == 2


def test_causal3dident_reads_the_classes_that_are_there(tmp_path):
    write_causal3dident(tmp_path)
    data = benchmarks.causal3dident(tmp_path, size=10, cache=tmp_path / "cache")
    batch = data.sample(6)
    assert len(data.factors) == 11
    assert sorted(batch.factors[:, 0].tolist()) == [0.0, 0.0, 0.0, 2.0, 2.0, 2.0]
    assert torch.allclose(batch.images[:, 0, 0, 0] * 255, 100 * batch.factors[:, 0])
    rows = (batch.images[:, 1, 0, 0] * 255).round().int().tolist()
    for row, factors in zip(rows, batch.factors, strict=True):
        latents = np.load(tmp_path / f"raw_latents_{int(factors[0])}.npy")[row]
        assert np.allclose(factors[1:].numpy(), latents)


def test_causal3dident_counts_its_pictures_also_past_five_digits(tmp_path):
    write_causal3dident(tmp_path)
    for i in range(3):
        (tmp_path / "images_0" / f"{i:05d}.png").rename(tmp_path / "images_0" / f"{99_998 + i}.png")
    batch = benchmarks.causal3dident(tmp_path, size=10, cache=tmp_path / "cache").sample(6)
    latents = np.load(tmp_path / "raw_latents_0.npy")
    for image, factors in zip(batch.images, batch.factors, strict=True):
        if factors[0] == 0:
            assert np.allclose(factors[1:].numpy(), latents[int((image[1, 0, 0] * 255).round())])


# ------------------------------------------------------------------ what a grid can do
@pytest.fixture
def grid():
    table = product({"shape": [0, 1, 2], "size": [0.5, 1.0, 1.5, 2.0], "still": [7]})
    order = np.random.default_rng(1).permutation(len(table))
    return Grid(
        "grid",
        torch.arange(12, dtype=torch.uint8)[torch.from_numpy(order)].view(12, 1, 1, 1),
        table[order],
        ("shape", "size", "still"),
    )


def test_a_counterfactual_without_changes_is_the_batch_itself_and_with_one_a_look_up(grid):
    batch = grid.sample(5, seed=3)
    assert grid.counterfactual(batch) is batch
    moved = grid.counterfactual(batch, size=1.5)
    assert torch.equal(moved.factors[:, 0], batch.factors[:, 0])
    assert torch.equal((moved.images.flatten() * 255).round(), moved.factors[:, 0] * 4 + 2)
    assert torch.equal(grid.counterfactual(moved, size=batch.factors[:, 1]).images, batch.images)


def test_pairs_of_a_grid_differ_in_one_factor_by_a_standard_deviation_and_in_nothing_else(grid):
    pairs = grid.pairs("size", 12, seed=0)
    change = pairs.source_factors - pairs.base_factors
    assert bool((change[:, [0, 2]] == 0).all())
    assert float(change[:, 1].min()) >= np.std([0.5, 1.0, 1.5, 2.0])
    for row, group in zip(pairs.base_factors, pairs.groups, strict=True):
        assert bool((pairs.base_factors[pairs.groups == group][:, 0] == row[0]).all())
    assert len(pairs.groups.unique()) == 3
    assert set(grid.pairs_by_factor(4)) == {"shape", "size"}
    both = grid.pairs_by_factor(6, seed=5)
    for images in (both["shape"], both["size"]):
        shown = grid.sample(6, seed=5).images
        assert bool(((images.base == shown) | (images.source == shown)).flatten(1).all(1).all())


def test_the_same_seed_gives_the_same_pairs_of_a_grid(grid):
    one, two, other = (grid.pairs("size", 12, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.base, two.base)
    assert torch.equal(one.source, two.source)
    assert not torch.equal(one.source, other.source)


def test_doses_of_a_grid_are_its_values(grid):
    doses = grid.doses("size", n=3, seed=0)
    assert doses.values.tolist() == [0.5, 1.0, 1.5, 2.0]
    rows = (torch.as_tensor(doses.images) * 255).round().flatten(1).int()
    assert bool((rows % 4 == torch.arange(4)[:, None]).all())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: g.do(2, size=0.7), "size = 0.7 is not on the grid; its values are 0.5, 1, 1.5, 2"),
        (lambda g: g.do(2, size=np.ones(3)), r"shape \(3,\), expected one number, or 2"),
        (lambda g: g.do(2, hue=1), "no factor 'hue'"),
        (lambda g: g.pairs("still", 2), "takes one value only"),
        (lambda g: g.pairs("size", 13), "only 12"),
        (lambda g: g.doses("size", 2, values=[0.5, 0.6]), "size = 0.6 is not on the grid"),
        (lambda g: g.counterfactual(datasets.Batch(torch.zeros(1, 1, 1, 1), torch.zeros(1, 2)), size=1), "2 factors"),
    ],
)
def test_what_is_not_on_the_grid_is_refused(grid, call, message):
    with pytest.raises(DataError, match=message):
        call(grid)


def test_a_table_that_is_no_grid_is_refused():
    table = product({"a": [0, 1], "b": [0, 1]})
    pixels = torch.zeros(4, 1, 1, 1, dtype=torch.uint8)
    with pytest.raises(DataError, match="3 images, but 2 x 2 combinations"):
        Grid("broken", pixels[:3], table[:3], ("a", "b"))
    table[3] = table[2]
    with pytest.raises(DataError, match=r"no image shows \{'a': 1.0, 'b': 1.0\}"):
        Grid("broken", pixels, table, ("a", "b"))


# ------------------------------------------------------------------ downloads, from a server of our own
def test_options_of_benchmarks_are_refused_elsewhere(tmp_path):
    with pytest.raises(DataError, match="path, size can be given for published benchmarks only"):
        datasets.load("digits", path=tmp_path, size=3)
    with pytest.raises(DataError, match="dsprites takes path, cache, progress; got size"):
        datasets.load("dsprites", path=tmp_path / "nothing.npz", size=3)
    for name in ("small_norb", "celeba", "causal3dident"):
        with pytest.raises(DataError, match=f"{name}: size=0, expected a whole number of pixels"):
            datasets.load(name, path=tmp_path, size=0)
    with pytest.raises(DataError, match=r"no file .*nothing\.npz\. Its official address is https"):
        datasets.load("dsprites", path=tmp_path / "nothing.npz")
