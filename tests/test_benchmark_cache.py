"""The cache of published benchmarks: images unpacked once, and nothing left of files that are broken or interrupted."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
import torch
from benchmark_files import write_causal3dident, write_celeba, write_dsprites, write_norb, write_shapes3d
from PIL import Image

from nnsight_vae.datasets import benchmarks
from nnsight_vae.datasets.stored import stored_images
from nnsight_vae.errors import DataError


def test_images_are_unpacked_once_mapped_and_never_written_to(tmp_path, monkeypatch):
    write_dsprites(tmp_path / "dsprites.npz")
    first = benchmarks.dsprites(tmp_path / "dsprites.npz", cache=tmp_path / "cache")
    (stored,) = (tmp_path / "cache").glob("*.npy")
    before = stored.read_bytes()
    monkeypatch.setitem(benchmarks.dsprites.__globals__, "stream_array", None)  # not needed a second time
    again = benchmarks.dsprites(tmp_path / "dsprites.npz", cache=tmp_path / "cache")
    assert torch.equal(first.images_u8(10), again.images_u8(10))
    again._images.fill_(7)
    assert stored.read_bytes() == before


def test_a_file_that_changes_is_unpacked_anew(tmp_path):
    write_dsprites(tmp_path / "dsprites.npz")
    benchmarks.dsprites(tmp_path / "dsprites.npz", cache=tmp_path / "cache")
    images, _ = write_dsprites(tmp_path / "dsprites.npz", sizes=(2, 2, 4, 2, 3))
    assert benchmarks.dsprites(tmp_path / "dsprites.npz", cache=tmp_path / "cache").n_images == len(images)


def test_other_content_of_the_same_length_is_unpacked_anew(tmp_path):
    content = {"imgs": np.zeros((2, 2, 2), np.uint8), "latents_values": np.diag([0.0] * 6)[:2]}
    content["latents_values"][1, 5] = 1
    for value in (0, 1):
        content["imgs"][:] = value
        np.savez(tmp_path / "d.npz", **content)
        shown = benchmarks.dsprites(tmp_path / "d.npz", cache=tmp_path / "cache").images_u8(2)
        assert shown.unique().tolist() == [255 * value]


def test_pictures_that_come_anew_are_decoded_anew(tmp_path):
    write_causal3dident(tmp_path)
    benchmarks.causal3dident(tmp_path, size=10, cache=tmp_path / "cache")
    (tmp_path / "images_0" / "00001.png").unlink()
    Image.new("RGB", (20, 20), (0, 0, 255)).save(tmp_path / "images_0" / "00001.png")
    blue = benchmarks.causal3dident(tmp_path, size=10, cache=tmp_path / "cache").sample(6).images[:, 2].amax((1, 2))
    assert blue.sum() == 1


def cut(file, share=0.6):
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])


def shorten(file):
    """Cut at the end of a line."""
    file.write_text("\n".join(file.read_text().splitlines()[:-2]) + "\n")


def spoil(file):
    """Bits flipped in the middle, the length kept."""
    data = bytearray(file.read_bytes())
    for i in range(len(data) // 3, len(data) // 3 + 40):
        data[i] ^= 0xFF
    file.write_bytes(bytes(data))


def with_dsprites(damage):
    def prepare(folder):
        write_dsprites(folder / "d.npz")
        damage(folder / "d.npz")
        return lambda cache: benchmarks.dsprites(folder / "d.npz", cache=cache)

    return prepare


def with_shapes(damage):
    def prepare(folder):
        write_shapes3d(folder / "s.h5", sizes=(2, 2, 2, 2, 2, 16))
        damage(folder / "s.h5")
        return lambda cache: benchmarks.shapes3d(folder / "s.h5", cache=cache)

    return prepare


def with_norb(damage):
    def prepare(folder):
        write_norb(folder, ending=".mat")
        damage(folder)
        return lambda cache: benchmarks.small_norb(folder, size=12, cache=cache)

    return prepare


def with_celeba(damage):
    def prepare(folder):
        write_celeba(folder)
        damage(folder)
        return lambda cache: benchmarks.celeba(folder, size=16, cache=cache)

    return prepare


def with_ident(damage):
    def prepare(folder):
        write_causal3dident(folder)
        damage(folder)
        return lambda cache: benchmarks.causal3dident(folder, size=10, cache=cache)

    return prepare


DAT = "smallnorb-5x46789x9x18x6x2x96x96-training-dat.mat"


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (with_dsprites(cut), r"d.npz is not a whole .npz file"),
        (with_dsprites(spoil), r"d.npz is not a whole .npz file"),
        (with_dsprites(lambda f: np.savez(f, images=np.zeros(2))), "no array 'latents_values'; it holds images"),
        (
            with_dsprites(lambda f: np.savez(f, imgs=np.zeros((2, 2, 2), np.uint8), latents_values=np.zeros((3, 6)))),
            "not dSprites",
        ),
        (
            with_dsprites(lambda f: np.savez(f, imgs=np.full((1, 2, 2), 9, np.uint8), latents_values=np.zeros((1, 6)))),
            "up to 9, expected uint8 of 0 and 1",
        ),
        (
            with_dsprites(lambda f: np.savez(f, imgs=np.zeros((1, 2, 2), object), latents_values=np.zeros((1, 6)))),
            "expected an array of numbers",
        ),
        (with_shapes(cut), "not a whole HDF5 file"),
        (with_shapes(spoil), "breaks off at image"),
        (with_shapes(lambda f: f.write_bytes(b"")), "not a whole HDF5 file"),
        (with_norb(lambda d: cut(d / DAT)), "truncated: .* bytes are missing"),
        (with_norb(lambda d: (d / DAT).write_bytes(b"\x00" * 64)), "no NORB file: it starts with 0x00000000"),
        (with_norb(lambda d: (d / DAT).unlink()), "has no smallnorb-.*-training-dat.mat.gz"),
        (with_celeba(lambda d: (d / "list_attr_celeba.txt").unlink()), "no .*list_attr_celeba.txt"),
        (with_celeba(lambda d: cut(d / "list_attr_celeba.txt", 0.95)), "line 7: expected a file name and 2 values"),
        (with_celeba(lambda d: shorten(d / "list_attr_celeba.txt")), "announces 5 pictures and lists 3"),
        (with_celeba(lambda d: (d / "img_align_celeba" / "000003.png").unlink()), "000003.png is missing"),
        (with_celeba(lambda d: cut(d / "img_align_celeba" / "000003.png")), "000003.png is missing or cannot be read"),
        (
            with_celeba(lambda d: Image.new("RGB", (178, 220)).save(d / "img_align_celeba" / "000003.png")),
            r"000003.png has \(178, 220\) pixels \(width, height\), but 000001.png has \(178, 218\)",
        ),
        (with_ident(lambda d: (d / "images_2" / "00001.png").unlink()), "has 3 rows, but images_2 holds 2 pictures"),
        (with_ident(lambda d: cut(d / "raw_latents_0.npy")), "raw_latents_0.npy cannot be read"),
        (with_ident(lambda d: np.save(d / "raw_latents_0.npy", np.array([None]), allow_pickle=True)), "cannot be read"),
    ],
)
def test_a_broken_file_is_refused_by_name_and_leaves_nothing_in_the_cache(tmp_path, prepare, message):
    source, cache = tmp_path / "source", tmp_path / "cache"
    source.mkdir()
    read = prepare(source)
    with pytest.raises(DataError, match=message):
        read(cache)
    assert not cache.exists() or not list(cache.iterdir())


def test_an_array_shorter_than_its_header_says_is_refused(tmp_path):
    images, table = write_dsprites(tmp_path / "d.npz")
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        for name, shape, array in (
            ("imgs", (len(table) + 1, *images.shape[1:]), images),
            ("latents_values", (len(table) + 1, 6), np.column_stack([np.ones(len(table)), table])),
        ):
            with archive.open(f"{name}.npy", "w") as file:
                header = {"descr": array.dtype.str, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                file.write(array.tobytes())
    with pytest.raises(DataError, match="'latents_values' ends after 144 of 145 rows"):
        benchmarks.dsprites(tmp_path / "d.npz", cache=tmp_path / "cache")


@pytest.mark.parametrize(("n", "message"), [(3, "2 images where 3 were announced"), (1, "images 0 to 2 have shape")])
def test_other_images_than_announced_are_not_stored(tmp_path, n, message):
    source = tmp_path / "source"
    source.write_bytes(b"")
    with pytest.raises(DataError, match=message):
        stored_images(
            "few", [source], (n, 1, 2, 2), lambda: iter([np.zeros((2, 1, 2, 2), np.uint8)]), tmp_path / "cache"
        )
    assert not list((tmp_path / "cache").iterdir())


def test_a_damaged_store_says_which_file_to_remove(tmp_path):
    write_dsprites(tmp_path / "d.npz")
    benchmarks.dsprites(tmp_path / "d.npz", cache=tmp_path / "cache")
    (stored,) = (tmp_path / "cache").glob("*.npy")
    cut(stored)
    with pytest.raises(DataError, match=r"cannot be read.*Remove it"):
        benchmarks.dsprites(tmp_path / "d.npz", cache=tmp_path / "cache")


def test_a_store_of_other_images_says_which_file_to_remove(tmp_path):
    write_dsprites(tmp_path / "d.npz")
    benchmarks.dsprites(tmp_path / "d.npz", cache=tmp_path / "cache")
    (stored,) = (tmp_path / "cache").glob("*.npy")
    for other in (np.zeros((3, 1, 8, 6), np.uint8), np.zeros((144, 1, 8, 6), np.int16)):
        np.save(stored, other)
        with pytest.raises(DataError, match=rf"holds {other.dtype} .*expected uint8 .*Remove it"):
            benchmarks.dsprites(tmp_path / "d.npz", cache=tmp_path / "cache")


def test_a_cache_without_room_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    write_dsprites(tmp_path / "d.npz")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("usage", (), {"free": 10}))
    with pytest.raises(DataError, match=r"0\.0 GB free"):
        benchmarks.dsprites(tmp_path / "d.npz", cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_unpacking_that_is_interrupted_starts_again(tmp_path, monkeypatch):
    images, _ = write_dsprites(tmp_path / "d.npz")
    monkeypatch.setattr("nnsight_vae.datasets.benchmarks.npz._CHUNK_BYTES", 64 * 10)
    grey = benchmarks.dsprites.__globals__["_grey"]
    calls = []

    def interrupted(file, chunk):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return grey(file, chunk)

    monkeypatch.setitem(benchmarks.dsprites.__globals__, "_grey", interrupted)
    with pytest.raises(KeyboardInterrupt):
        benchmarks.dsprites(tmp_path / "d.npz", cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())
    assert (
        benchmarks.dsprites(tmp_path / "d.npz", cache=tmp_path / "cache").images_u8(len(images)).sum()
        == images.sum() * 255.0
    )
