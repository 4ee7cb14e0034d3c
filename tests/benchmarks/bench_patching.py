"""Patching every unit of every layer of a VAE, against the ways people write it by hand, as ratios measured in one process.

    python tests/benchmarks/bench_patching.py            # everything, or some of: conv mlp pendulum memory
    python tests/benchmarks/bench_patching.py conv 256   # one sweep over that many pairs, for its memory

What the others take is measured on a few units a site, spread evenly, and scaled to all of them; ours is measured whole.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests' own helpers

from measuring import resident, seconds
from work import Work, rows_run

import nnsight_vae as nv
from nnsight_vae import engine
from nnsight_vae.levels.units import default_sites
from nnsight_vae.models import MLPVAE, ConvVAE
from nnsight_vae.readouts import Region

ROUNDS = 3
PAIRS = 64
SAMPLED = 4  # units a site that the others are measured on
READ = Region({"all": (slice(0, 64), slice(0, 64))})

Chain = list[tuple[str, nn.Module]]
Sweep = Callable[[Chain, str, list[int], Tensor, Tensor], Tensor]


def chain_of(model: nn.Module) -> Chain:
    """The modules from image to reconstruction at the posterior mean, in order."""
    encoder = [(f"encoder.{name}", part) for name, part in model.encoder.named_children()]
    decoder = [(f"decoder.{name}", part) for name, part in model.decoder.named_children()]
    return [*encoder, ("fc_mu", model.fc_mu), ("latent.z", nn.Identity()), *decoder]


def run(parts: Chain, x: Tensor) -> Tensor:
    for _, part in parts:
        x = part(x)
    return x


# ---------------------------------------------------------------------- what people write
def by_traces(vae: nv.VAE) -> Sweep:
    """(a) One nnsight trace a unit."""

    def sweep(chain: Chain, site: str, units: list[int], base: Tensor, source: Tensor) -> Tensor:
        envoy, out = vae.envoy(site), []
        with torch.no_grad(), vae.trace(source):
            donor = envoy.output.save()
        for u in units:
            with torch.no_grad(), vae.trace(base):
                envoy.output[:, u] = donor[:, u]
                out.append(READ(vae.output).save())
        return torch.stack(out)

    return sweep


def by_hooks(chain: Chain, site: str, units: list[int], base: Tensor, source: Tensor) -> Tensor:
    """(b) One hooked forward a unit."""
    module, kept, out = dict(chain)[site], [], []
    handle = module.register_forward_hook(lambda module, args, output: kept.append(output))
    run(chain, source)
    handle.remove()
    for u in units:

        def write(module: nn.Module, args: tuple, output: Tensor, u: int = u) -> Tensor:
            output = output.clone()
            output[:, u] = kept[0][:, u]
            return output

        handle = module.register_forward_hook(write)
        out.append(READ(run(chain, base)))
        handle.remove()
    return torch.stack(out)


def split(chain: Chain, site: str) -> tuple[Chain, Chain]:
    at = [name for name, _ in chain].index(site) + 1
    return chain[:at], chain[at:]


def grown(activation: Tensor, donor: Tensor, units: list[int]) -> Tensor:
    """A copy of the activation for each unit, with that unit replaced, `[units, n, ...]`."""
    copies = activation.repeat(len(units), *[1] * activation.ndim)
    for k, u in enumerate(units):
        copies[k, :, u] = donor[:, u]
    return copies


def by_suffix(chain: Chain, site: str, units: list[int], base: Tensor, source: Tensor) -> Tensor:
    """(c) The prefix once, then the suffix on expanded batches of the size that the engine's constant allows."""
    head, tail = split(chain, site)
    activation, donor = run(head, base), run(head, source)
    out = []
    for chunk in chunks(tail, activation, units):
        out.append(READ(run(tail, grown(activation, donor, chunk).flatten(0, 1))).unflatten(0, (len(chunk), -1)))
    return torch.cat(out)


def by_vmap(chain: Chain, site: str, units: list[int], base: Tensor, source: Tensor) -> Tensor:
    """(d) As (c), with `torch.vmap` over the units of a chunk."""
    head, tail = split(chain, site)
    activation, donor = run(head, base), run(head, source)
    suffix = torch.vmap(lambda h: READ(run(tail, h)))
    return torch.cat([suffix(grown(activation, donor, chunk)) for chunk in chunks(tail, activation, units)])


def chunks(tail: Chain, activation: Tensor, units: list[int]) -> Iterator[list[int]]:
    sizes, row = [activation[0].numel()], activation[:1]
    for _, part in tail:
        row = part(row)
        sizes.append(row.numel())
    step = max(1, engine.CHUNK_BYTES // (4 * max(sizes)) // len(activation))
    for i in range(0, len(units), step):
        yield units[i : i + step]


# ---------------------------------------------------------------------- the table
def bench(name: str, model: nn.Module, base: Tensor, source: Tensor) -> None:
    vae, chain = nv.VAE(model, example=base), chain_of(model)
    sites = [site for site in default_sites(vae) if site != "fc_logvar"]  # which nothing reads at the posterior mean
    everything = [{unit: nv.Swap(source)} for site in sites for unit in vae.sites[site].units]
    others = {
        "trace a unit": by_traces(vae),
        "hooks a unit": by_hooks,
        "suffix by hand": by_suffix,
        "vmap of suffix": by_vmap,
    }

    def ours() -> Tensor:
        return engine.run_interventions(vae, base, everything, READ)

    def theirs(sweep: Sweep) -> float:
        total = 0.0
        for site in sites:
            n = vae.sites[site].n_units
            units = sampled(n)
            # Once a site, however many its units are: the prefix, of base and of source.
            fixed = seconds(lambda site=site: run(split(chain, site)[0], base)) * (
                2 if sweep in (by_suffix, by_vmap) else 1
            )
            spent = seconds(lambda site=site, units=units: sweep(chain, site, units, base, source))
            total += fixed + max(0.0, spent - fixed) * n / len(units)
        return total

    with torch.no_grad():
        found: list[Tensor] = []
        work = rows_run(model, lambda: found.append(ours()))
        agree(vae, chain, sites, found[0], base, source, others)
        timed: dict[str, list[float]] = {"ours": [], **{other: [] for other in others}}
        for _ in range(ROUNDS):
            timed["ours"].append(seconds(ours))
            for other, sweep in others.items():
                timed[other].append(theirs(sweep))
    mine = statistics.median(timed["ours"])
    print(f"\n{name}: {len(everything)} units, {len(base)} pairs, {mine:.2f} s")
    for other in others:
        ratio = statistics.median(o / t for o, t in zip(timed["ours"], timed[other], strict=True))
        print(f"  ours / {other:<18}{ratio:>8.3f}{1 / ratio:>8.2f}x faster", flush=True)
    with torch.no_grad():
        bound, products = arithmetic(model, work, base)
    layers = f"its layers alone: {products / 1e9:.0f} G products at {products / bound / 1e9:.0f} G/s"
    print(f"  ours / arithmetic{mine / bound:>16.3f}    {layers}", flush=True)


def sampled(n: int) -> list[int]:
    return sorted({int((i + 0.5) * n / SAMPLED) for i in range(SAMPLED)})


def agree(
    vae: nv.VAE, chain: Chain, sites: list[str], whole: Tensor, base: Tensor, source: Tensor, others: dict[str, Sweep]
) -> None:
    """All ways give the same numbers."""
    start = 0
    for site in sites:
        units = sampled(vae.sites[site].n_units)
        for sweep in others.values():
            torch.testing.assert_close(
                whole[[start + u for u in units]], sweep(chain, site, units, base, source), atol=1e-5, rtol=0
            )
        start += vae.sites[site].n_units


def arithmetic(model: nn.Module, work: Work, base: Tensor) -> tuple[float, float]:
    """Seconds that the linear and convolutional layers take, each alone, for the rows they were run on whole; and the products."""
    layers = {name: layer for name, layer in model.named_modules() if name in work.rows}
    inputs: dict[str, Tensor] = {}
    for name, layer in layers.items():
        layer.register_forward_pre_hook(lambda module, args, name=name: inputs.setdefault(name, args[0]))
    run(chain_of(model), base)
    inputs["fc_logvar"] = inputs["fc_mu"]
    total = products = 0.0
    for name, layer in layers.items():
        layer._forward_pre_hooks.clear()
        x = inputs[name]
        once = statistics.median(seconds(lambda layer=layer, x=x: layer(x)) for _ in range(9))
        total += once / len(base) * work.rows[name]
        mapped = x if isinstance(layer, nn.ConvTranspose2d) else layer(x)
        positions = 1 if isinstance(layer, nn.Linear) else mapped[0, 0].numel()
        products += layer.weight.numel() * positions * work.rows[name]
    return total, products


# ---------------------------------------------------------------------- memory
def models(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "conv":
        return ConvVAE((3, 64, 64), latent=10, channels=(32, 32, 64, 64), hidden=256)
    return MLPVAE((3, 64, 64), latent=10, hidden=(512, 256))


def peak(name: str, pairs: int) -> None:
    """Print the MiB by which a sweep over units of every site raises the peak, less what it returns.

    Inputs are there before, and what is tried once a site has been tried. Each number of pairs has a process of its own.
    """
    vae = nv.VAE(models(name), example=torch.rand(2, 3, 64, 64))
    base, source = torch.rand(pairs, 3, 64, 64), torch.rand(pairs, 3, 64, 64)
    *sites, last = default_sites(vae)
    units = [nv.Unit(site, vae.sites[site].n_units // 2) for site in sites]  # one a site, and all of the cheapest site
    plan = [{unit: nv.Swap(source)} for unit in [*units, *vae.sites[last].units]]
    engine.run_interventions(vae, base[:4], [{key: nv.Swap(source[:4]) for key in entry} for entry in plan], READ)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = resident("VmRSS")
    result = engine.run_interventions(vae, base, plan, READ)
    print(resident("VmHWM") - before - result.numel() * result.element_size() / 2**20)


def bench_memory(name: str) -> None:
    found = {}
    # What is freed leaves the resident set at once; and the kernels that oneDNN makes for each number of rows, and keeps (1,024
    # of them in a process), are not counted.
    at_once = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "0"}
    for pairs in (64, 256, 1024):
        command = [sys.executable, __file__, name, str(pairs)]
        out = subprocess.run(command, capture_output=True, text=True, check=True, env=at_once)
        found[pairs] = float(out.stdout)
    shown = ", ".join(f"{pairs} pairs {mib:.0f} MiB" for pairs, mib in found.items())
    print(f"{name}: extra memory {shown}; 1024 / 64 pairs: {found[1024] / found[64]:.2f}", flush=True)


def main(wanted: list[str]) -> None:
    torch.set_num_threads(1)
    if len(wanted) == 2:
        peak(wanted[0], int(wanted[1]))
        return
    if not wanted or "conv" in wanted:
        bench("conv, random weights and images", models("conv"), *torch.rand(2, PAIRS, 3, 64, 64))
    if not wanted or "mlp" in wanted:
        bench("MLP, random weights and images", models("mlp"), *torch.rand(2, PAIRS, 3, 64, 64))
    if not wanted or "pendulum" in wanted:
        pairs = nv.datasets.load("pendulum").pairs("angle", n=PAIRS)
        bench("pendulum-beta-vae, pairs of angle", nv.load("pendulum-beta-vae").unwrap(), pairs.base, pairs.source)
    if not wanted or "memory" in wanted:
        bench_memory("conv")
        bench_memory("mlp")


if __name__ == "__main__":
    main(sys.argv[1:])
