"""Plausible mistakes: each is refused by an error of the family that says what was got, and the user's model is as before."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from vaes import seeded

import nnsight_vae as nv


class Lived(nn.Module):
    """In training, with dropout and batch norm, a frozen weight, an in-place activation and a hook of its user's."""

    def __init__(self) -> None:
        super().__init__()
        self.enc = nn.Sequential(
            nn.Flatten(),
            nn.Linear(64, 16),
            nn.BatchNorm1d(16),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(16, 6),
        )
        self.dec = nn.Sequential(
            nn.Linear(3, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 64), nn.Unflatten(1, (1, 8, 8))
        )
        self.dec[0].weight.requires_grad_(False)
        self.seen: list[int] = []
        self.enc[1].register_forward_hook(lambda *args: self.seen.append(1))

    def encode(self, x):
        return self.enc(x).chunk(2, 1)

    def decode(self, z):
        return self.dec(z)


class Reads:
    """A readout that goes wrong in one way."""

    def __init__(self, names=("a",), reads="output", values=lambda r: r.flatten(1)[:, :1]) -> None:
        self.names, self.reads, self.values = names, reads, values

    def __call__(self, reconstruction):
        return self.values(reconstruction)


def state(vae: nv.VAE) -> list:
    model = vae.module
    return [
        [m.training for m in model.modules()],
        [(p.requires_grad, p.grad) for p in model.parameters()],
        [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
        vae.fingerprint,
        torch.get_rng_state().tolist(),
    ]


@pytest.fixture(scope="module")
def vae():
    model = seeded(Lived()).train()
    return nv.VAE(model)


X = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
PAIRS = nv.Pairs(X, X.flip(0))
TOP = nv.readouts.Region({"top": (slice(0, 4), slice(None))})
NAN = X.clone().fill_(float("nan"))


def patch(vae, sites="latent.z", pairs=PAIRS, readout=TOP, **options):
    return nv.patch_activations(vae, pairs, sites, readout=readout, **options)


def perturb(vae, **options):
    return nv.perturb_latents(vae, X, **({"readout": TOP} | options))


MISTAKES = {
    "another dtype": (lambda v: v(X.double()), nv.DataError, r"float64.*x\.to\(torch\.float32\)"),
    "a device for a batch": (lambda v: v("cuda"), nv.DataError, "torch tensor, got str"),
    "an image for a batch": (lambda v: v(X[0, 0]), nv.DataError, r"cannot run x of shape \(8, 8\)"),
    "NaN pixels": (lambda v: v.encode(NAN), nv.DataError, "NaN or infinite values in 12 of 12"),
    "another latent": (lambda v: v.decode(torch.zeros(2, 4)), nv.DataError, r"this VAE's latent is \('n', 3\)"),
    "a typo": (lambda v: patch(v, "latnt.z"), nv.SiteError, "'latnt.z' is not a site of this VAE"),
    "a unit too many": (lambda v: patch(v, "latent.z[3]"), nv.SiteError, r"exists with 3 units \(0-2\)"),
    "a negative index too far": (lambda v: patch(v, "latent.z[-4]"), nv.SiteError, "names no unit"),
    "a module for a site": (lambda v: patch(v, [v.module.enc[1]]), nv.SiteError, "cannot read the key"),
    "no sites": (lambda v: patch(v, []), nv.SiteError, "no sites given"),
    "empty pairs": (lambda v: nv.Pairs(X[:0], X[:0]), nv.DataError, "got 0 pairs"),
    "pairs of two shapes": (lambda v: nv.Pairs(X, X[..., :4]), nv.DataError, "with equal shape"),
    "pairs of NaN": (lambda v: nv.Pairs(NAN, X), nv.DataError, "12 rows, first in row 0"),
    "pairs of another size": (
        lambda v: patch(v, pairs=nv.Pairs(torch.zeros(4, 1, 9, 9), torch.ones(4, 1, 9, 9))), nv.DataError, "cannot run x",
    ),
    "a tuple for pairs": (lambda v: patch(v, pairs=(X, X)), nv.DataError, "got a tuple where pairs belong"),
    "noise of another latent": (
        lambda v: patch(v, pairs=nv.Pairs(X, X.flip(0), eps=torch.zeros(12, 4))), nv.DataError, r"eps .*\(12, 3\)",
    ),
    "a readout of another shape": (
        lambda v: patch(v, readout=Reads(values=lambda r: r.flatten(1))), nv.ReadoutError, r"returned \(\d+, 64\), expected \(\d+, 1\)",
    ),
    "a readout of NaN": (
        lambda v: patch(v, readout=Reads(values=lambda r: r.flatten(1)[:, :1] * torch.nan)), nv.InterventionError, "the readout itself",
    ),
    "a readout of nowhere": (lambda v: patch(v, readout=Reads(reads="nowhere")), nv.SiteError, "'nowhere' is not a site"),
    "a readout with a name twice": (
        lambda v: patch(v, readout=Reads(names=("a", "a"), values=lambda r: r.flatten(1)[:, :2])), nv.DataError, "repeat a name",
    ),
    "pixels of another image": (lambda v: patch(v, readout=nv.readouts.Pixels((1, 9, 9))), nv.ReadoutError, r"reads a batch of shape \(n, 1, 9, 9\)"),
    "a word for a number": (lambda v: nv.mediate(v, PAIRS, "latent.z", readout=TOP, hold="zero"), nv.InterventionError, "does not hold"),
    "mediators that overlap": (lambda v: nv.mediate(v, PAIRS, ["latent.z", "latent.z[0]"], readout=TOP), nv.InterventionError, "both name"),
    "percent for quantiles": (lambda v: perturb(v, quantiles=(5, 95)), nv.InterventionError, "between 0 and 1"),
    "a layer for a latent": (lambda v: perturb(v, units="enc.1"), nv.InterventionError, r"acts on latent\.z, got enc\.1\[0\];"),
    "activity of a model": (lambda v: nv.metrics.activity(v.module, X), nv.AdapterError, r"wrap it first: vae = nv\.VAE"),
    "pictures of a model": (lambda v: nv.circuits.thumbnails(v.module, X), nv.AdapterError, r"wrap it first: vae = nv\.VAE"),
    "a number for an intervention": (lambda v: nv.intervene(v, X, {"latent.z": 0}), nv.InterventionError, r"such as nv\.Set\(2\.0\), got int"),
    "values of other rows": (
        lambda v: nv.intervene(v, X, {"latent.z": nv.Set(torch.zeros(5, 3))}), nv.InterventionError, "does not fit latent.z",
    ),
    "a reference of another size": (
        lambda v: nv.manipulate_inputs(v, PAIRS, reference=torch.zeros(3, 1, 9, 9)), nv.DataError, "cannot run x",
    ),
    "no factor": (lambda v: nv.manipulate_inputs(v, {}), nv.DataError, "no pairs given"),
    "a factor without a name": (lambda v: nv.manipulate_inputs(v, {1: PAIRS}), nv.DataError, "must be names"),
    "the bare model": (lambda v: nv.latent_metrics(v.module, X), nv.AdapterError, "wrap it first"),
}  # fmt: skip


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode], ids=["grad", "inference"])
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_and_leaves_the_model_as_it_was(name, mode, vae):
    call, error, message = MISTAKES[name]
    before = state(vae)
    with mode(), pytest.raises(error, match=message):
        call(vae)
    assert state(vae) == before


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_results_are_those_of_eval_mode_whatever_the_model_and_autograd_are_in(mode, vae):
    before = state(vae)
    runs = {
        "patching": lambda: patch(vae, ["enc.1", "latent.z"]).values,
        "latents": lambda: perturb(vae).values,
        "inputs": lambda: nv.manipulate_inputs(vae, PAIRS).values,
        "mediation": lambda: nv.mediate(vae, PAIRS, "latent.z[0]", readout=TOP, hold=0.0).nde.values,
    }
    for name, run in runs.items():
        expected = run()
        with mode():
            torch.testing.assert_close(torch.from_numpy(run()), torch.from_numpy(expected), msg=name)
    assert state(vae) == before
    assert vae.module.seen  # the user's own hook ran
