"""Small files in the exact formats of published benchmarks."""

from __future__ import annotations

import gzip
import struct

import h5py
import numpy as np
from PIL import Image

from nnsight_vae.datasets.grid import product


def write_dsprites(file, sizes=(3, 2, 4, 2, 3)):
    table = product({str(i): np.linspace(0, 1, n) for i, n in enumerate(sizes)})
    images = np.random.default_rng(0).integers(0, 2, (len(table), 8, 6), dtype=np.uint8)
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
    images = np.random.default_rng(0).integers(0, 256, (len(table), 8, 8, 3), dtype=np.uint8)
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
        images = np.random.default_rng(s).integers(0, 256, (len(rows), 2, 12, 12), dtype=np.uint8)
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
        np.save(folder / f"raw_latents_{c}.npy", np.random.default_rng(c).uniform(-1, 1, (n, 10)))
        (folder / f"images_{c}").mkdir()
        for i in range(n):
            Image.new("RGB", (20, 20), (100 * c, i, 0)).save(folder / f"images_{c}" / f"{i:05d}.png")
