"""Published benchmark files: small ones in the exact formats are read as written, broken ones refused and the cache left whole."""

from __future__ import annotations

import gzip
import hashlib
import struct
import threading
import zipfile
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from nnsight_vae import datasets
from nnsight_vae.datasets import Grid, benchmarks
from nnsight_vae.datasets.download import located
from nnsight_vae.datasets.grid import product
from nnsight_vae.datasets.stored import stored_images
from nnsight_vae.errors import DataError

rng = np.random.default_rng(0)


# ------------------------------------------------------------------ files in the formats of their authors
def write_dsprites(file, sizes=(3, 2, 4, 2, 3)):
    table = product({str(i): np.linspace(0, 1, n) for i, n in enumerate(sizes)})
    images = rng.integers(0, 2, (len(table), 8, 8), dtype=np.uint8)
    metadata = np.array({"author": "a pickled dict, as in the real file"}, dtype=object)
    np.savez_compressed(
        file,
        metadata=metadata,
        imgs=images,
        latents_classes=np.zeros((len(table), 6), np.int64),
        latents_values=np.column_stack([np.ones(len(table)), table]),
    )
    return images, table


def write_shapes3d(file, sizes=(2, 3, 2, 2, 2, 2)):
    table = product({str(i): np.linspace(0, 1, n) for i, n in enumerate(sizes)})
    images = rng.integers(0, 256, (len(table), 8, 8, 3), dtype=np.uint8)
    with h5py.File(file, "w") as content:
        content.create_dataset("images", data=images, chunks=(16, 8, 8, 3), compression="gzip")
        content.create_dataset("labels", data=table)
    return images, table


def norb(array, magic):
    sizes = list(array.shape) + [1] * (3 - array.ndim)
    return struct.pack("<II", magic, array.ndim) + np.array(sizes, "<i4").tobytes() + array.tobytes()


def write_norb(folder, splits=("training", "testing"), ending=".mat.gz"):
    names = {"training": "5x46789x9x18x6x2x96x96-training", "testing": "5x01235x9x18x6x2x96x96-testing"}
    kept = []
    for s, split in enumerate(splits):
        # two categories of one instance each, 2 elevations, 2 azimuths, 1 lighting
        rows = product({"c": [0, 1], "i": [4 + s], "e": [0, 3], "a": [0, 34], "l": [5]})
        images = rng.integers(0, 256, (len(rows), 2, 12, 12), dtype=np.uint8)
        contents = {
            "dat": norb(images, 0x1E3D4C55),
            "cat": norb(rows[:, 0].astype("<i4"), 0x1E3D4C54),
            "info": norb(rows[:, 1:].astype("<i4"), 0x1E3D4C54),
        }
        for kind, data in contents.items():
            packed = gzip.compress(data) if ending.endswith("gz") else data
            (folder / f"smallnorb-{names[split]}-{kind}{ending}").write_bytes(packed)
        kept.append(images)
    return np.concatenate(kept)


def write_celeba(folder, n=5):
    (folder / "img_align_celeba").mkdir()
    lines = [str(n), "Bald Smiling "]
    for i in range(n):
        Image.new("RGB", (178, 218), (i * 40, 0, 255)).save(folder / "img_align_celeba" / f"{i + 1:06d}.png")
        lines.append(f"{i + 1:06d}.png  {1 if i % 2 else -1}  1")
    (folder / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")


def write_causal3dident(folder, n=3):
    for c in (0, 2):
        np.save(folder / f"raw_latents_{c}.npy", rng.uniform(-1, 1, (n, 10)))
        (folder / f"images_{c}").mkdir()
        for i in range(n):
            Image.new("RGB", (20, 20), (100 * c, i, 0)).save(folder / f"images_{c}" / f"{i:05d}.png")


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
    images = (
        np.arange(n, dtype=np.uint32).view(np.uint8).reshape(n, 1, 4)[:, :, None, :3]
    )  # the row number, little end first
    np.savez_compressed(tmp_path / "mpi3d_toy.npz", images=images)
    data = datasets.load("mpi3d", path=tmp_path / "mpi3d_toy.npz", cache=tmp_path, version="real")
    assert (data.name, data.sizes["color"], data.sizes["vertical"]) == ("mpi3d-real", colors, 40)
    last = (
        data.do(1, color=1, shape=2, size=1, camera_height=0, background=2, horizontal=3, vertical=39)
        .images[0]
        .flatten()
    )
    expected = np.ravel_multi_index((1, 2, 1, 0, 2, 3, 39), tuple(data.sizes.values()))
    assert int((last * 255).round() @ torch.tensor([1.0, 256.0, 65536.0])) == expected


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


# ------------------------------------------------------------------ the cache
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
            ("imgs", (len(table) + 1, 8, 8), images),
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


# ------------------------------------------------------------------ downloads, from a server of our own
@pytest.fixture
def server(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    running = HTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(shared)))
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield shared, f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()


def test_a_download_is_checked_kept_and_not_repeated(server, tmp_path):
    shared, url = server
    (shared / "data.npz").write_bytes(b"content")
    md5 = hashlib.md5(b"content").hexdigest()
    file = located("data", None, f"{url}/data.npz", md5, tmp_path / "cache", False)
    assert file.read_bytes() == b"content"
    (shared / "data.npz").unlink()
    assert located("data", None, f"{url}/data.npz", md5, tmp_path / "cache", False) == file


def test_a_download_with_another_checksum_or_none_at_all_leaves_nothing(server, tmp_path):
    shared, url = server
    (shared / "data.npz").write_bytes(b"other content")
    for name in ("data.npz", "absent.npz"):
        with pytest.raises(DataError, match=rf"could not be downloaded from {url}/{name}(.|\n)*give path="):
            located("data", None, f"{url}/{name}", "0" * 32, tmp_path / "cache", False)
    assert not [f for f in (tmp_path / "cache").iterdir() if f.is_file()]


@pytest.mark.parametrize("name", ["celeba", "causal3dident"])
def test_what_may_not_be_downloaded_says_where_it_is_had(name):
    with pytest.raises(DataError, match=f"{name} is not downloaded here: get it from https://"):
        datasets.load(name)


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
