"""The conformance suite: every architecture passes it, every way of getting an adapter wrong is named; and how adapters are found."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch
import vaes
from matrix import conforms, seeded
from nnsight_vae.adapters.base import library_classes
from torch import nn
from torch.nn import functional as F

import nnsight_vae as nv
from nnsight_vae.testing import check_adapter

LIBRARIES = ("pythae", "disent", "diffusers", "scvi")


# ---------------------------------------------------------------------- every architecture
def our_vq():
    torch.manual_seed(0)
    model = nv.models.VQVAE(image_shape=(1, 8, 8), latent=3, codes=6, channels=(4, 8)).eval()
    with torch.no_grad():
        vectors = model.encoder(torch.rand(20, 1, 8, 8, generator=seeded())).movedim(1, -1).flatten(0, -2)
        model.codebook.copy_(vectors[torch.randperm(len(vectors), generator=seeded())[:6]])
    return model


ARCHITECTURES = {
    "perceptron": lambda: nv.models.MLPVAE(image_shape=(1, 8, 8), latent=3, hidden=(8,)),
    "convolutions": lambda: nv.models.ConvVAE(image_shape=(1, 16, 16), latent=3, channels=(4, 4), hidden=8),
    "residual": lambda: nv.models.ResidualVAE(image_shape=(1, 16, 16), latent=3, channels=(4, 4), hidden=8),
    "codes": our_vq,
    "in-place, forward that samples": lambda: vaes.seeded(vaes.ConvVAE()),
    "batch norm": lambda: vaes.seeded(vaes.ConvVAE(norm=True)),
    "functional activations": lambda: vaes.seeded(vaes.MLPVAE()),
    "spatial latent, Normal posterior": lambda: vaes.seeded(vaes.ResidualVAE()),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_four_levels_and_attribution_run_on_every_architecture(name):
    torch.manual_seed(0)
    vae = nv.VAE(ARCHITECTURES[name]().eval())
    conforms(vae, torch.rand(5, *vae.sites["input"].shape, generator=seeded(1)))


def test_codes_that_only_the_decoder_knows_are_swapped_too():
    model = vaes.vq_vae()
    vae = nv.adapt(model, codebook=model.codebook.weight, example=vaes.images(model, 2))
    conforms(vae, vaes.images(model, 5))


# ---------------------------------------------------------------------- what is reported
class Small(nn.Module):
    """8 numbers, 3 latents, and parts for adapters to use wrongly."""

    def __init__(self):
        super().__init__()
        self.body, self.mu, self.logvar = nn.Linear(8, 6), nn.Linear(6, 3), nn.Linear(6, 3)
        self.grow, self.out = nn.Linear(3, 6), nn.Linear(6, 8)
        self.discriminator = nn.Sequential(nn.Linear(3, 1))
        self.act = nn.Tanh()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        return self.out(self.act(self.grow(self.mu(self.act(self.body(x))))))


class Right(nv.adapters.Adapter):
    def encode(self, model, x):
        h = model.act(model.body(x))
        return nv.Posterior(model.mu(h), model.logvar(h))

    def decode(self, model, z):
        return model.out(model.act(model.grow(z)))


def small() -> nn.Module:
    return vaes.seeded(Small())


@pytest.fixture
def x():
    return torch.randn(5, 8, generator=seeded())


def test_the_report_says_what_was_held_against_what_and_which_modules_are_no_sites(x):
    vae = nv.VAE(small(), Right())
    found = check_adapter(vae, x)
    assert found.difference == 0.0
    assert (found.model, found.adapter, found.reference) == ("Small", "Right", "forward(x)")
    assert found.unreached == vae.self_check
    assert found.unreached.never == ("discriminator",)
    assert found.unreached.repeated == {"act": 2}
    assert found.sites == len(vae.sites)
    said = str(found)
    for part in (
        "Right reads Small",
        "forward(x)",
        "Never run: discriminator (",
        "Run more than once a forward: act, 2 times (",
    ):
        assert part in said
        assert part in repr(vae) + said
    assert "Never run: discriminator" in repr(vae)


def test_circuits_are_scored_or_said_why_not(monkeypatch, x):
    vae = nv.VAE(small(), Right())
    assert check_adapter(vae, x).circuit.startswith("scored, ")
    monkeypatch.setattr("nnsight_vae.testing._SCORED", 10)
    assert "not tried on" in check_adapter(vae, x).circuit


def test_a_module_of_which_every_part_runs_is_not_listed_though_it_is_only_iterated_over():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(8, 6), nn.Linear(6, 6)])
            self.unused = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
            self.decoder = nn.Linear(3, 8)

        def encode(self, x):
            for layer in self.layers:
                x = layer(x)
            return x.chunk(2, 1)

        def decode(self, z):
            return self.decoder(z)

    assert nv.VAE(Listed()).self_check.never == ("unused",)
    assert not nv.VAE(nv.models.MLPVAE(image_shape=(1, 8, 8), latent=3)).self_check


# ---------------------------------------------------------------------- what is wrong is named
class Misread(Right):
    def encode(self, model, x):
        h = model.act(model.body(x))
        return nv.Posterior(model.logvar(h), model.mu(h))


class Draws(Right):
    """No reference of its own, and noise of its own: what reads a library that samples in its decode does."""

    def decode(self, model, z):
        return super().decode(model, z + 0.1 * torch.randn_like(z))

    def reference(self, model, x):
        return model(x), "forward"

    tolerance = 1e6


class SkipsTheLatent(Right):
    def encode(self, model, x):
        self.kept = model.body(x)
        return super().encode(model, x)

    def decode(self, model, z):
        grown = model.grow(z)
        return model.out(model.act(grown + self.kept[: len(z)] if len(self.kept) >= len(z) else grown))

    def reference(self, model, x):
        return self.decode(model, self.encode(model, x).mu), "decode(encode(x).mu)"


class RoundsDecoding(Right):
    def decode(self, model, z):
        return super().decode(model, z).detach()


class RoundsEncoding(Right):
    def encode(self, model, x):
        return nv.Posterior(*(part.detach() for part in super().encode(model, x)))


class Counts(Right):
    def encode(self, model, x):
        model.seen += 1
        return super().encode(model, x)


class Switches(Right):
    def decode(self, model, z):
        model.act.__dict__["training"] = not model.act.training
        return super().decode(model, z)

    def reference(self, model, x):
        model.grow.requires_grad_(False)
        return model(x), "forward"


class Hooks(Right):
    def encode(self, model, x):
        model.mu.register_forward_hook(lambda *_: None)
        return super().encode(model, x)


class UsesRandomness(Right):
    def encode(self, model, x):
        torch.rand(1)
        return super().encode(model, x)


class Functional(Right):
    def decode(self, model, z):
        return F.linear(torch.tanh(F.linear(z, model.grow.weight, model.grow.bias)), model.out.weight, model.out.bias)


class Overflows(Right):
    def decode(self, model, z):
        return super().decode(model, z) + torch.where(z[:, :1] == 1.0, torch.inf, 0.0)


WRONG = {
    Misread: r"differs from the model's forward\(x\)",
    Draws: "sampling: the same noise gave another sample: the adapter draws its own",
    SkipsTheLatent: "decode depends on what was encoded last; something reaches the decoder beside the latent",
    RoundsDecoding: "attribution: no gradient reaches the latent",
    RoundsEncoding: "attribution: no gradient reaches the input",
    Counts: "model untouched: the model's weights or buffers changed",
    Switches: "model untouched: the model's requires_grad changed",
    Hooks: "model untouched: the model's hooks changed",
    UsesRandomness: "model untouched: the model's use of the global random state changed",
    Functional: "sites: no module of the decoder is a site",
    Overflows: "trace: a latent set in a run is not what decode makes of it",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_every_way_of_getting_an_adapter_wrong_is_named(wrong, x):
    with pytest.raises(nv.AdapterError, match=WRONG[wrong]):
        check_adapter(nv.VAE(small(), wrong()), x)


def test_too_few_inputs_or_equal_ones_are_refused(x):
    vae = nv.VAE(small(), Right())
    for inputs in (x[:3], x[:1].expand(5, -1)):
        with pytest.raises(nv.DataError, match="at least 4 inputs that differ"):
            check_adapter(vae, inputs)


def test_the_user_gets_the_mode_back_that_the_model_was_in(x):
    model = small().train()
    model.mu.eval()
    check_adapter(nv.VAE(model, Right()), x)
    assert model.training
    assert not model.mu.training


# ---------------------------------------------------------------------- how adapters are found
def test_no_library_is_imported_to_find_an_adapter():
    script = (
        "import sys, nnsight_vae as nv\n"
        "nv.VAE(nv.models.MLPVAE(image_shape=(1, 8, 8), latent=3))\n"
        f"print(sorted(set(sys.modules) & set({LIBRARIES!r})))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


def of_library(name: str, module: str, *bases: type, **body) -> type:
    """A class as a library would define it, whether that is installed or not."""
    return type(name, bases or (nn.Module,), {"__module__": module, **body})


def test_a_model_of_a_library_is_read_by_its_classes_though_the_library_is_not_here():
    """The structure that pythae 0.1.2 gives its models, recorded: names of classes, modules, and fields of what they return."""

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.log_var = nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, x):
            return {"embedding": self.embedding(x), "log_covariance": self.log_var(x)}

    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Linear(3, 8)

        def forward(self, z):
            return {"reconstruction": self.layers(z)}

    def predict(self, x):
        return {"recon_x": self.decoder(self.encoder(x)["embedding"])["reconstruction"]}

    base = of_library("BaseAE", "pythae.models.base.base_model", predict=predict)
    kind = of_library("BetaVAE", "pythae.models.beta_vae.beta_vae_model", base)
    model = kind()
    model.encoder, model.decoder = Encoder(), Decoder()
    assert library_classes(model, "pythae") == ("BetaVAE", "BaseAE")
    vae, x = nv.VAE(model), torch.rand(5, 8, generator=seeded())
    assert type(vae.adapter).__module__ == "nnsight_vae.adapters.pythae"
    assert vae.verify(x) == 0.0
    conforms(vae, x)


@pytest.mark.parametrize("library", LIBRARIES)
def test_other_things_of_a_library_go_to_the_generic_adapter(library):
    kind = of_library("Block", f"{library}.nn.blocks", nv.models.MLPVAE)
    model = kind(image_shape=(1, 8, 8), latent=3)
    assert type(nv.VAE(model).adapter) is nv.adapters.EncodeDecode


def test_an_adapter_of_an_installed_package_is_found_by_its_entry_point(tmp_path, monkeypatch, x):
    """As the README tells: a package that names its adapter in the group nnsight_vae.adapters."""
    package = """
        from nnsight_vae import Posterior
        from nnsight_vae.adapters import Adapter


        class LabAdapter(Adapter):
            def matches(self, model):
                return type(model).__name__ == "Small"

            def encode(self, model, x):
                h = model.act(model.body(x))
                return Posterior(model.mu(h), model.logvar(h))

            def decode(self, model, z):
                return model.out(model.act(model.grow(z)))
    """
    (tmp_path / "lab_vaes.py").write_text(textwrap.dedent(package))
    info = tmp_path / "lab_vaes-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lab-vaes\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[nnsight_vae.adapters]\nlab = lab_vaes:LabAdapter\n")
    monkeypatch.syspath_prepend(tmp_path)
    vae = nv.VAE(small())
    assert type(vae.adapter).__module__ == "lab_vaes"
    assert check_adapter(vae, x).adapter == "LabAdapter"


def test_a_model_that_nothing_fits_is_shown_with_lines_that_work():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.mu, self.logvar, self.out = nn.Linear(8, 3), nn.Linear(8, 3), nn.Linear(3, 8)
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(1, 1)) for _ in range(30))

    model = Heads()
    with pytest.raises(nv.AdapterError, match="Heads does not look like a VAE") as refused:
        nv.VAE(model)
    said = str(refused.value)
    assert "\n  mu: Linear\n  logvar: Linear\n  out: Linear\n  blocks: ModuleList\n  blocks.0: Sequential\n" in said
    assert "\n  ...\n" in said
    assert len(said.splitlines()) < 40
    names = {"nv": nv, "model": model}
    exec(textwrap.dedent(said.split("after z:\n")[1]), names)
    check_adapter(names["vae"], torch.rand(5, 8, generator=seeded()))


# ---------------------------------------------------------------------- recipes
def test_a_script_with_interleaved_heads_is_told_in_two_lambdas():
    """Mean and log variance of each latent side by side, as in YannDubs/disentangling-vae, and a scale by softplus."""
    model = nn.ModuleDict({"encoder": nn.Linear(8, 6), "decoder": nn.Linear(3, 8)})
    x = torch.randn(5, 8, generator=seeded())
    heads = model["encoder"](x).view(-1, 3, 2)
    interleaved = nv.adapt(
        model, encoder=lambda x: model["encoder"](x).view(-1, 3, 2).unbind(-1), decoder=model["decoder"]
    )
    assert torch.equal(interleaved.encode(x).mu, heads[..., 0])
    assert torch.equal(interleaved.encode(x).logvar, heads[..., 1])
    conforms(interleaved, x)

    def soft(x):
        mu, raw = model["encoder"](x).chunk(2, 1)
        return {"mu": mu, "scale": F.softplus(raw)}

    scaled = nv.adapt(model, encoder=soft, decoder=model["decoder"])
    torch.testing.assert_close(scaled.encode(x).sd, F.softplus(model["encoder"](x)[:, 3:]))
    conforms(scaled, x)


def test_a_lightning_module_is_wrapped_as_any_other():
    lightning = pytest.importorskip("lightning", reason="lightning is not installed")

    class Lit(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = small()

        def training_step(self, batch, index):
            return F.mse_loss(self.net(batch), batch)

    lit, x = Lit(), torch.randn(5, 8, generator=seeded())
    vae = nv.adapt(lit, encoder=lambda x: Right().encode(lit.net, x), decoder=lambda z: Right().decode(lit.net, z))
    assert "net.body" in vae.sites
    conforms(vae, x)
    assert vae.unwrap() is lit
