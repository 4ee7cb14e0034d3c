"""What the wrapper and the engine cost, as ratios measured in one process. Run: python tests/benchmarks/bench_engine.py"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from measuring import seconds
from torch import Tensor, nn

import nnsight_vae as nv
from nnsight_vae import engine
from nnsight_vae.models import MLPVAE, ConvVAE

ROUNDS = 15


def ratio(ours: Callable[[], object], reference: Callable[[], object]) -> tuple[float, float, float]:
    """Median over rounds of ours / reference, the two run in turn; and both medians in ms."""
    ours(), reference()
    pairs = [(seconds(ours), seconds(reference)) for _ in range(ROUNDS)]
    a, b = (statistics.median(p[i] for p in pairs) for i in (0, 1))
    return statistics.median(p[0] / p[1] for p in pairs), a * 1e3, b * 1e3


class Mean:
    names = ("mean",)

    def __call__(self, reconstruction: Tensor) -> Tensor:
        return reconstruction.flatten(1).mean(1, keepdim=True)


def suffix_by_hand(model: nn.Module, site: str, units: list[int], base: Tensor, source: Tensor, rows: int) -> Tensor:
    """The best a researcher would write: prefix cached, one expanded batch per chunk, the suffix run on it."""
    stage, index = site.split(".")
    chain = getattr(model, stage)
    head, tail = chain[: int(index) + 1], chain[int(index) + 1 :]
    if stage == "decoder":
        base, source = (model.encode(x)[0] for x in (base, source))
    x, donor = head(base), head(source)
    out = []
    per_chunk = max(1, rows // len(x))
    for i in range(0, len(units), per_chunk):
        chunk = units[i : i + per_chunk]
        grown = x.repeat(len(chunk), *([1] * (x.ndim - 1)))
        view = grown.unflatten(0, (len(chunk), len(x)))
        for k, u in enumerate(chunk):
            view[k, :, u] = donor[:, u]
        h = tail(grown)
        if stage == "encoder":
            h = model.decode(model.fc_mu(h))
        out.append(h.flatten(1).mean(1).view(len(chunk), len(x)))
    return torch.cat(out)


def bench_forward(name: str, raw: nn.Module, wrapped: nv.VAE, x: Tensor) -> None:
    with torch.no_grad():
        report(
            f"{name}: untraced forward, batch {len(x)}", ratio(lambda: wrapped(x), lambda: raw.decode(raw.encode(x)[0]))
        )


def bench_sweep(name: str, raw: nn.Module, wrapped: nv.VAE, site: str, base: Tensor, source: Tensor) -> None:
    units = [u % wrapped.sites[site].n_units for u in range(64)]
    largest = max(torch.Size(s.shape).numel() for s in wrapped.sites.values()) * 4
    rows = max(engine.MIN_ROWS, engine.CHUNK_BYTES // largest)
    swap = nv.Swap(source)
    plan = [{nv.Unit(site, u): swap} for u in units]

    def ours() -> Tensor:
        return engine.run_interventions(wrapped, base, plan, Mean())

    def by_hand() -> Tensor:
        with torch.no_grad():
            return suffix_by_hand(raw, site, units, base, source, rows)

    torch.testing.assert_close(ours()[..., 0], by_hand(), atol=1e-5, rtol=0)
    report(f"{name}: 64 patches at {site}, {len(base)} images", ratio(ours, by_hand))


def report(case: str, result: tuple[float, float, float]) -> None:
    print(f"{case:<52}{result[0]:>8.3f}{result[1]:>10.2f}{result[2]:>10.2f}", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = (3, 64, 64)
    print(f"{'case':<52}{'ratio':>8}{'ours ms':>10}{'ref ms':>10}")
    for name, network, sites in (
        ("conv", ConvVAE, ("encoder.2", "encoder.6", "decoder.1", "decoder.7")),
        ("mlp", MLPVAE, ("encoder.2", "decoder.1")),
    ):
        raw, module = network(image_shape=shape).eval(), network(image_shape=shape)
        for ours, theirs in zip(module.parameters(), raw.parameters(), strict=True):
            # The same memory: two copies of one model differ by 10 % from their placement alone.
            ours.data = theirs.data
        x = torch.rand(64, *shape)
        wrapped = nv.VAE(module, example=x)
        bench_forward(name, raw, wrapped, x)
        base, source = torch.rand(4, *shape), torch.rand(4, *shape)
        for site in sites:
            bench_sweep(name, raw, wrapped, site, base, source)


if __name__ == "__main__":
    main()
