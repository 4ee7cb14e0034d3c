"""Datasets from files: read as they were written, and refused with the place of the fault."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch
from PIL import Image

import nnsight_vae.datasets as datasets
from nnsight_vae.errors import DataError

GOOD = np.zeros((60, 8, 8), np.uint8)
TABLE = np.random.default_rng(0).normal(size=(60, 2))


def write_folder(folder, mode="L", n=4, header="file,size,tilt"):
    folder.mkdir(exist_ok=True)
    lines = [header]
    for index in range(n):
        Image.new("L", (10, 8), index * 20).convert(mode).save(folder / f"{index}.png")
        lines.append(f"{index}.png,{index}.5,{-index}")
    (folder / "factors.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 3), ("P", 3)])
def test_a_folder_of_images_is_read_as_it_was_written(tmp_path, mode, channels):
    data = datasets.load(write_folder(tmp_path / "blobs", mode))
    assert (data.name, data.n_images, data.image_shape) == ("blobs", 4, (channels, 8, 10))
    assert data.factors == ("size", "tilt")
    batch = data.sample(4)
    for image, (size, tilt) in zip(batch.images, batch.factors.tolist(), strict=True):
        assert size == -tilt + 0.5
        assert torch.equal(image, torch.full((channels, 8, 10), -tilt * 20 / 255))


def test_an_npz_is_read_as_it_was_written(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8), np.uint8)
    np.savez(tmp_path / "blobs.npz", images=images, factors=TABLE, names=np.array(["size", "tilt"]))
    data = datasets.load(str(tmp_path / "blobs.npz"))
    assert (data.name, data.factors) == ("blobs", ("size", "tilt"))
    assert data.images_u8(60).sum() == images.sum()
    np.savez(tmp_path / "unnamed.npz", images=images, factors=TABLE)
    assert datasets.from_path(tmp_path / "unnamed.npz").factors == ("factor_0", "factor_1")


def test_a_graph_can_be_given_with_files(tmp_path):
    graph = nx.DiGraph([("size", "tilt")])
    data = datasets.from_path(write_folder(tmp_path / "blobs"), graph=graph)
    assert set(data.graph.edges) == {("size", "tilt")}


def edit(name, text):
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "factors.csv").unlink(), "has no factors.csv"),
        (lambda folder: (folder / "2.png").unlink(), "2.png is missing or cannot be read"),
        (edit("2.png", "not an image"), "2.png is missing or cannot be read"),
        (
            lambda folder: (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:45]),
            "2.png is missing or cannot",
        ),
        (lambda folder: Image.new("L", (9, 8)).save(folder / "2.png"), r"2.png has shape \(8, 9, 1\)"),
        (lambda folder: Image.new("RGB", (10, 8)).save(folder / "2.png"), r"2.png has shape \(8, 10, 3\)"),
        (lambda folder: Image.new("I;16", (10, 8)).save(folder / "2.png"), "2.png is a I;16 image"),
        (lambda folder: Image.new("RGBA", (10, 8)).save(folder / "2.png"), "without transparency"),
        (edit("factors.csv", ""), r"columns \[\]"),
        (edit("factors.csv", "name,size\n0.png,1\n"), "expected 'file'"),
        (edit("factors.csv", "file\n0.png\n"), "at least one factor"),
        (edit("factors.csv", "file,size,size\n0.png,1,2\n"), "each column once"),
        (edit("factors.csv", "file,size\n"), "no rows"),
        (edit("factors.csv", "file,size\n0.png,1\n1.png,big\n"), "line 3: size is 'big'"),
        (edit("factors.csv", "file,size,tilt\n0.png,1\n"), "line 2: tilt is None"),
        (edit("factors.csv", "file,size\n,1\n"), "line 2: no file name"),
        (edit("factors.csv", "file,size\n0.png,nan\n"), "factors hold NaN"),
        (edit("factors.csv", 'file,size\n"0.png,1\n'), "cannot be read as CSV"),
        (lambda folder: (folder / "factors.csv").write_bytes(b"file,size\n\xff,1\n"), "cannot be read as CSV"),
    ],
)
def test_a_damaged_folder_is_refused_with_the_place(tmp_path, damage, message):
    folder = write_folder(tmp_path / "blobs")
    damage(folder)
    with pytest.raises(DataError, match=message):
        datasets.load(folder)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": GOOD}, "has no array 'factors'; it holds"),
        ({"pictures": GOOD}, "no array 'images' and no 'factors'"),
        ({"images": GOOD, "factors": TABLE[:-1]}, "blobs.npz: from_arrays: factors have shape"),
        ({"images": GOOD, "factors": TABLE, "names": np.array([1, 2])}, "expected an array of strings"),
        ({"images": GOOD, "factors": np.array([[None]] * 60)}, "pickled objects are refused"),
        ({"images": GOOD, "factors": TABLE, "names": np.array(["a", "b"], object)}, "pickled objects are refused"),
    ],
)
def test_an_npz_that_does_not_fit_is_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "blobs.npz", **arrays)
    with pytest.raises(DataError, match=message):
        datasets.load(tmp_path / "blobs.npz")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken", b"text", b"\x93NUMPY\x01\x00v\x00{'descr': "])
def test_a_file_that_is_no_npz_is_refused(tmp_path, content):
    (tmp_path / "blobs.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"cannot be read as an .npz"):
        datasets.load(tmp_path / "blobs.npz")


def test_a_single_array_file_is_refused(tmp_path):
    np.save(tmp_path / "images.npy", GOOD)
    with pytest.raises(DataError, match=r"cannot be read as an .npz"):
        datasets.load(tmp_path / "images.npy")


def test_an_unknown_name_or_missing_path_is_refused_with_the_choices(tmp_path):
    with pytest.raises(DataError, match=r"neither one of digits, .*pendulum, .*dsprites.* nor an existing path"):
        datasets.load("pendulums")
    with pytest.raises(DataError, match="No such file or folder"):
        datasets.from_path(tmp_path / "nothing")
