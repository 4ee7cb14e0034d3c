"""How patching behaves: what it refuses, leaves behind, warns of and calls its results."""

from __future__ import annotations

import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from patched import MODELS, READ, N, ThreePixels, pairs_of
from torch import Tensor, nn

import nnsight_vae as nv
from nnsight_vae import engine
from nnsight_vae.levels import patching, through


# ---------------------------------------------------------------------- conduct
@pytest.mark.parametrize(
    ("how", "passes"),
    [({}, 2), ({"direction": "noising"}, 1), ({"ablation": "mean"}, 2), ({"through": ["fc_mu[0]", "latent.z[1]", "fc_mu[2]"]}, 6),
     ({"through": [["fc_mu"], ["latent.z"], ["decoder.0"]], "direction": "denoising"}, 4)],
)  # fmt: skip
def test_the_bar_counts_every_run_of_every_pass(how, passes, monkeypatch):
    vae, pairs = pairs_of(MODELS["conv"])
    seen, totals = [], []

    @contextmanager
    def bar(description, total, show=None):
        totals.append(total)
        yield seen.append

    monkeypatch.setattr(patching, "progress_bar", bar)
    monkeypatch.setattr(through, "CARRIED_BYTES", 1)
    nv.patch_activations(vae, pairs, ["encoder.0[0]", "encoder.2[0:2]"], readout=READ, **how)
    assert totals == [3 * N * passes] == [sum(seen)]


@pytest.mark.parametrize("how", [{}, {"through": ["fc_mu[0]"]}, {"ablation": "mean"}])
@pytest.mark.parametrize("after", [0, 1, 3])
def test_an_interrupt_leaves_the_model_as_it_was(how, after):
    vae, pairs = pairs_of.__wrapped__(MODELS["conv"])  # of its own, to be changed
    vae.module.train()
    for parameter in vae.module.fc_mu.parameters():
        parameter.requires_grad_(False)
    keys = ["encoder.0[0]", "encoder.2[0]", "fc_mu[1]"] if not how else ["encoder.0[0]", "encoder.2[0]"]
    want = nv.patch_activations(vae, pairs, keys, readout=READ, **how).values
    state = fingerprint(vae.module)

    class Interrupting(ThreePixels):
        calls = 0

        def __call__(self, reconstruction: Tensor) -> Tensor:
            self.calls += 1
            if self.calls > after:
                raise KeyboardInterrupt
            return super().__call__(reconstruction)

    with pytest.raises(KeyboardInterrupt):
        nv.patch_activations(vae, pairs, keys, readout=Interrupting(), **how)
    assert fingerprint(vae.module) == state
    np.testing.assert_array_equal(nv.patch_activations(vae, pairs, keys, readout=READ, **how).values, want)


def fingerprint(model: nn.Module) -> list:
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()]
    state = [(name, tensor.double().sum().item()) for name, tensor in model.state_dict().items()]
    flags = [(m.training, getattr(m, "inplace", None)) for m in model.modules()]
    return [hooks, state, flags, [(p.requires_grad, p.grad) for p in model.parameters()]]


def test_one_pair_has_means_but_no_interval():
    vae, pairs = pairs_of(MODELS["mlp"], n=1)
    for how in ({}, {"through": ["latent.z"]}, {"ablation": "mean"}):
        effects = nv.patch_activations(vae, pairs, ["enc1[0]"], readout=READ, **how)
        assert effects.mean().shape == (1, 3)
        with pytest.raises(nv.DataError, match="cluster"):
            effects.ci()


def test_by_default_only_what_can_reach_the_readout_is_patched():
    vae, pairs = pairs_of(MODELS["conv"])
    found = nv.patch_activations(vae, pairs, readout=nv.readouts.Latents(5), direction="noising")
    assert {unit.split("[")[0] for unit in found.units} == {"encoder.0", "encoder.2", "encoder.5", "fc_mu", "fc_logvar"}
    passing = nv.patch_activations(
        vae, pairs, readout=READ, direction="noising", through=["fc_logvar[0]", "decoder.0[1]"]
    )
    assert {unit.split("[")[0] for unit in passing.units} == {"encoder.0", "encoder.2", "encoder.5", "fc_mu"}


def test_effects_too_large_to_keep_are_announced(monkeypatch):
    vae, pairs = pairs_of(MODELS["mlp"])
    monkeypatch.setattr(patching, "_LARGE", 3 * 8 * 3 * N * 4 - 1)
    with pytest.warns(nv.NnsightVaeWarning, match="GiB of memory"):
        nv.patch_activations(vae, pairs, ["latent.z"], readout=READ)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nv.patch_activations(vae, pairs, ["latent.z"], readout=READ, direction="noising")


def test_provenance_says_what_was_done():
    vae, pairs = pairs_of(MODELS["mlp"])
    record = nv.patch_activations(vae, pairs, ["enc1"], readout=READ, per="site", ablation="mean").provenance
    assert (record["direction"], record["per"], record["ablation"]) == ("both", "site", "Mean(<tensor 14x20>)")
    plain = nv.patch_activations(vae, pairs, ["enc1[0]"], readout=READ).provenance
    assert (plain["ablation"], plain["through"]) == (None, None)
    path = nv.patch_activations(
        vae, pairs, ["enc1[0]"], readout=READ, through=[["latent.z[0:2]"], ["dec1[1]", "dec1[3]"]]
    )
    assert path.provenance["through"] == [["latent.z[0:2]"], ["dec1[1]", "dec1[3]"]]


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"direction": "forth"}, nv.InterventionError, "direction must be 'both', 'noising' or 'denoising', got 'forth'"),
        ({"per": "channel"}, nv.InterventionError, "per must be 'unit', 'site' or 'position', got 'channel'"),
        ({"ablation": "average"}, nv.InterventionError, "ablation must be 'zero', 'mean' or 'resample', .* got 'average'"),
        ({"ablation": nv.Scale(0.5)}, nv.InterventionError, r"ablation must be .* got Scale\(0.5\)"),
        ({"ablation": nv.Mean(torch.zeros(3, 19))}, nv.InterventionError, "needs inputs of shape"),
        ({"ablation": 0.0}, nv.InterventionError, "ablation must be"),
        ({"through": []}, nv.InterventionError, "lets nothing pass"),
        ({"through": [[]]}, nv.InterventionError, "lets nothing pass"),
        ({"through": [["latent.z[0]"], []]}, nv.InterventionError, "lets nothing pass"),
        ({"through": ["latent.z[9]"]}, nv.SiteError, "names no unit"),
        ({"through": 3}, nv.SiteError, "cannot read the key 3"),
        ({"through": ["latent.z[0]", ["dec1"]]}, nv.InterventionError, "mixes keys with lists"),
        ({"through": ["latent.z[0]", "latent.z[0:2]"]}, nv.InterventionError, r"both name latent\.z\[0\]"),
        ({"through": ["enc1[0]"]}, nv.InterventionError, r"enc1\[0\] is not downstream of enc2\[1\]"),
        ({"through": ["enc2[0]"]}, nv.InterventionError, r"enc2\[0\] is not downstream of enc2\[1\]"),
        ({"through": ["latent.z", "enc1[1]"]}, nv.InterventionError, r"enc1\[1\] is not downstream of enc2\[1\]"),
        ({"sites": [("enc1[0]", "latent.z[1]")], "through": ["latent.mu[0]"]}, nv.InterventionError, r"not downstream of latent\.z\[1\]"),
        ({"through": [["dec1"], ["latent.z"]]}, nv.InterventionError, "latent.z is not downstream of dec1"),
        ({"through": [["dec1[0]"], ["dec1[1]"]]}, nv.InterventionError, r"dec1\[1\] is not downstream of dec1\[0\]"),
        ({"through": ["latent.z"], "readout": nv.readouts.Latents(4)}, nv.InterventionError, "comes after 'latent.mu'"),
        ({"sites": ["latent.z"], "readout": nv.readouts.Latents(4)}, nv.InterventionError, "comes before 'latent.z'"),
        ({"sites": []}, nv.SiteError, "no sites given"),
        ({"sites": None, "through": ["enc1", "latent.z"]}, nv.InterventionError, "no linear .* layer comes before 'enc1'"),
        ({"sites": [("enc1[0]", "enc1[0:2]")]}, nv.InterventionError, r"both name enc1\[0\]"),
        ({"sites": ["enc1@0"]}, nv.SiteError, "has no positions"),
        ({"readout": None}, nv.ReadoutError, "where a readout belongs"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_any_run(how, error, message, monkeypatch):
    vae, pairs = pairs_of(MODELS["mlp"])
    vae.sites["enc1"]
    monkeypatch.setattr(engine, "clean_run", lambda *args, **kwargs: pytest.fail("ran"))
    with pytest.raises(error, match=message):
        nv.patch_activations(vae, pairs, **({"sites": ["enc2[1]"], "readout": READ} | how))


def test_a_target_the_readout_does_not_have_and_one_it_cannot_read_are_refused():
    with pytest.raises(nv.ReadoutError, match=r"no target 'pixel\[20\]'"):
        nv.readouts.Pixels((20,))["pixel[20]"]
    generator = torch.Generator().manual_seed(0)
    seen, unseen = torch.rand(200, 1, 1, 1, generator=generator), torch.rand(200, 1, generator=generator)
    with pytest.raises(nv.ReadoutError, match=r"below 0.8 for unseen .* means nothing"):
        nv.readouts.Factors.fit(seen.expand(-1, 1, 8, 8), unseen, ["unseen"], steps=10)


# ---------------------------------------------------------------------- results that mislead
class FromTheBase:
    """Squared distance to the base reconstruction: at the base it has no gradient."""

    names = ("distance",)

    def __init__(self, reconstruction: Tensor) -> None:
        self.base = reconstruction

    def __call__(self, reconstruction: Tensor) -> Tensor:
        return (reconstruction - self.base[:1]).square().flatten(1).sum(1, keepdim=True)


def warned(how: dict, vae, pairs, readout) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        nv.patch_activations(vae, pairs, ["latent.z"], readout=readout, **how)
    assert all(item.filename == __file__ for item in caught)  # they name the caller's line
    return [str(item.message) for item in caught]


def test_a_readout_without_gradient_at_the_base_is_announced_where_noising_is_asked_for():
    vae, pairs = pairs_of(MODELS["mlp"], noisy=False)
    same_base = nv.Pairs(pairs.base[:1].repeat(N, 1), pairs.source)
    flat = FromTheBase(vae(pairs.base[:1]).detach())
    for how, count in (
        ({}, 1),
        ({"direction": "noising"}, 1),
        ({"direction": "denoising"}, 0),
        ({"ablation": "zero"}, 1),
    ):
        found = [
            text for text in warned(how, vae, same_base, flat) if "no gradient at the base run for: distance" in text
        ]
        assert len(found) == count
    assert warned({}, vae, same_base, READ) == []
    many = nv.readouts.Pixels((20,))
    assert warned({"direction": "noising"}, vae, same_base, many) == []


def test_a_readout_that_cannot_be_differentiated_is_read_all_the_same():
    vae, pairs = pairs_of(MODELS["mlp"])

    class Outside(ThreePixels):
        def __call__(self, reconstruction: Tensor) -> Tensor:
            return torch.from_numpy(super().__call__(reconstruction).numpy().copy())

    class Detached(ThreePixels):
        def __call__(self, reconstruction: Tensor) -> Tensor:
            return super().__call__(reconstruction).detach()

    want = nv.patch_activations(vae, pairs, ["latent.z"], readout=READ).values
    for readout in (Outside(), Detached()):
        np.testing.assert_array_equal(nv.patch_activations(vae, pairs, ["latent.z"], readout=readout).values, want)
    with torch.inference_mode():
        np.testing.assert_array_equal(nv.patch_activations(vae, pairs, ["latent.z"], readout=READ).values, want)


def test_pairs_without_orientation_are_announced_where_directions_are_averaged():
    """A unit that gates: its effect has the sign of the rest, which base and source differ in."""

    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads, self.out = nn.Linear(2, 4), nn.Linear(1, 2)

        def encode(self, x: Tensor):
            return x, torch.zeros_like(x)

        def decode(self, z: Tensor):
            return (z[:, :1] * z[:, 1:]).expand(-1, 2)

    class First:
        names = ("product",)

        def __call__(self, reconstruction: Tensor) -> Tensor:
            return reconstruction[:, :1]

    base = torch.tensor([[1.0, 1.0]]) + 0.01 * torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
    pairs = nv.Pairs(base, base * torch.tensor([2.0, -1.0]))
    vae = nv.VAE(Gate(), example=base)
    keys = "latent.z[0]"
    with pytest.warns(nv.NnsightVaeWarning, match="opposite sign in 1 of the 1 effects"):
        nv.patch_activations(vae, pairs, keys, readout=First())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for how in ({"direction": "noising"}, {"direction": "denoising"}, {"ablation": "zero"}):
            nv.patch_activations(vae, pairs, keys, readout=First(), **how)


# ---------------------------------------------------------------------- names of results
def test_results_at_positions_and_of_sets_are_found_by_their_site():
    vae, pairs = pairs_of(MODELS["residual"], n=12)
    keys = ["latent.z", ("stem[0]", "latent.z[1]@2,2")]
    effects = nv.patch_activations(vae, pairs, keys, readout=READ, per="position")
    assert effects.select("latent.z").units == tuple(f"latent.z@{i},{j}" for i in range(4) for j in range(4))
    assert effects.select("stem[0] + latent.z[1]@2,2").values.shape == (1, 3, 12)
    frame = effects.to_frame(n_boot=20, n_perm=20).drop_duplicates("unit")
    assert frame["site"].tolist() == ["latent.z"] * 16 + ["stem[0] + latent.z[1]@2,2"]
    assert frame["index"].isna().all()
    with pytest.raises(nv.SiteError, match="not a unit or site"):
        effects.select("stem")
    one = nv.patch_activations(vae, pairs, ["latent.z[1]@0,1"], readout=READ, direction="noising")
    assert one.units == ("latent.z[1]@0,1",) == one.select("latent.z").units
