"""pythae's models against pythae's own calls."""

from __future__ import annotations

import pytest
import torch
from matrix import conforms, seeded
from torch import nn

import nnsight_vae as nv

models = pytest.importorskip("pythae.models", reason="pythae is not installed (pip install 'nnsight-vae[pythae]')")
from pythae.models.base.base_utils import ModelOutput  # noqa: E402
from pythae.models.nn import BaseDecoder, BaseEncoder  # noqa: E402

IMAGE, LATENT = (1, 8, 8), 3
GAUSSIAN = ("VAE", "BetaVAE", "FactorVAE", "BetaTCVAE", "DisentangledBetaVAE", "INFOVAE_MMD", "VAMP", "IWAE", "VAEGAN")
POINT = ("AE", "WAE_MMD", "RAE_L2")


def made(name: str, **options) -> nn.Module:
    torch.manual_seed(0)
    config = getattr(models, f"{name}Config", None) or getattr(models, f"{name}_Config")
    return getattr(models, name)(config(input_dim=IMAGE, latent_dim=LATENT, **options))


@pytest.fixture
def x():
    return torch.rand(5, *IMAGE, generator=seeded())


class Conv(BaseEncoder):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 4, 4), nn.Tanh(), nn.Conv2d(4, 3, 1))

    def forward(self, x):
        return ModelOutput(embedding=self.layers(x))


class Deconv(BaseDecoder):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Tanh(), nn.ConvTranspose2d(4, 1, 4, 4), nn.Sigmoid())

    def forward(self, z):
        return ModelOutput(reconstruction=self.layers(z))


def spatial_vq(**options) -> nn.Module:
    """2 x 2 positions of 3 channels, 6 codes that are encodings of images: untrained codes would all be one."""
    torch.manual_seed(0)
    config = models.VQVAEConfig(input_dim=IMAGE, latent_dim=LATENT, num_embeddings=6, **options)
    model = models.VQVAE(config, encoder=Conv(), decoder=Deconv()).eval()
    with torch.no_grad():
        encodings = model.encoder(torch.rand(6, *IMAGE, generator=seeded())).embedding
        codes = model.quantizer.embeddings
        (codes.weight if isinstance(codes, nn.Embedding) else codes).copy_(encodings.movedim(1, -1).flatten(0, -2)[::4])
    return model


@pytest.mark.parametrize("name", [*GAUSSIAN, *POINT])
def test_a_wrapped_model_is_its_encoder_and_decoder(name, x):
    model = made(name)
    vae = nv.VAE(model)
    assert vae.sites["input"].shape == IMAGE  # inferred
    assert vae.verify(x) == 0.0
    encoded = model.eval().encoder(x)
    assert torch.equal(vae.encode(x).mu, encoded.embedding)
    assert torch.equal(vae(x), model.decoder(encoded.embedding).reconstruction)
    assert {"encoder.layers.0.0", "encoder.embedding", "decoder.layers.1.0"} <= set(vae.sites)
    if name in GAUSSIAN:
        assert torch.equal(vae.encode(x).logvar, encoded.log_covariance)
        eps = torch.randn(5, LATENT, generator=seeded(1))
        z = encoded.embedding + torch.exp(0.5 * encoded.log_covariance) * eps
        assert torch.equal(vae(x, eps=eps), model.decoder(z).reconstruction)
    else:
        assert float(vae.encode(x).sd.detach().max()) < 1e-12


@pytest.mark.parametrize("name", ["VAE", "FactorVAE", "AE", "VAE_IAF", "VAE_LinNF"])
def test_every_level_runs_on_it(name, x):
    conforms(nv.VAE(made(name)), x)


@pytest.mark.parametrize("options", [{}, {"use_ema": True}], ids=["embedding", "moving averages"])
def test_every_level_runs_on_its_codes(options, x):
    conforms(nv.VAE(spatial_vq(**options)), x)


def test_the_reference_is_pythaes_own_path(x):
    vae = nv.VAE(made("VAE"))
    reconstruction, path = vae.adapter.reference(vae.module, x)
    assert path == "predict(x)"
    assert torch.equal(reconstruction, vae.module.predict(x).recon_x)


@pytest.mark.parametrize("name", ["VAE_IAF", "VAE_LinNF"])
def test_a_flow_is_part_of_decoding_though_predict_leaves_it_out(name, x):
    model = made(name)
    vae = nv.VAE(model)
    assert vae.verify(x) == 0.0
    mu = model.eval().encoder(x).embedding
    flowed = mu
    if name == "VAE_IAF":
        flowed = model.iaf_flow.inverse(mu).out
    else:
        for layer in model.net:
            flowed = layer(flowed).out
    assert not torch.equal(flowed, mu)
    assert torch.equal(vae.encode(x).mu, mu)
    assert torch.equal(vae(x), model.decoder(flowed).reconstruction)
    assert not torch.allclose(vae(x), model.predict(x).recon_x)


@pytest.mark.parametrize("name", ["VAE_IAF", "VAE_LinNF", "VAMP"])
def test_where_the_prior_is_not_standard_no_kl_is_told(name, x):
    with pytest.raises(nv.PriorError, match=r"prior is not N\(0, 1\)"):
        nv.VAE(made(name)).encode(x).kl()
    assert nv.VAE(made("VAE")).encode(x).kl().shape == (5, LATENT)


def test_the_latent_of_a_vqvae_is_its_code_at_each_position(x):
    model = spatial_vq()
    vae = nv.VAE(model)
    found = model({"data": x})
    assert torch.equal(vae(x), found.recon_x)
    assert torch.equal(vae.encode(x).mu, found.z)
    assert vae.sites["latent.z"].shape == (3, 2, 2)
    codes = found.quantized_indices[:, 0]
    assert len(codes.unique()) > 2
    torch.testing.assert_close(found.z, model.quantizer.embeddings.weight[codes].movedim(-1, 1))
    assert not torch.allclose(vae(x), model.predict(x).recon_x)  # pythae's predict does not quantise

    swapped = codes.clone()
    swapped[:, 1, 0] = 4
    quantised = model.quantizer.embeddings.weight[swapped].movedim(-1, 1)
    out = nv.intervene(vae, x, {"latent.z@1,0": nv.Quantize(4)})
    torch.testing.assert_close(out.reconstruction, model.decoder(quantised).reconstruction)

    swapped = codes.clone()
    swapped[:, 0, 1] = codes.flip(0)[:, 0, 1]
    out = nv.intervene(vae, x, {"latent.z@0,1": nv.Swap(x.flip(0))})
    torch.testing.assert_close(
        out.reconstruction, model.decoder(model.quantizer.embeddings.weight[swapped].movedim(-1, 1)).reconstruction
    )


def test_an_encoding_moved_before_quantisation_becomes_another_code(x):
    model = spatial_vq()
    vae = nv.VAE(model)
    codes = model.quantizer.embeddings.weight.detach()
    out = nv.intervene(vae, x, {"encoder.layers.2@0,1": nv.Set(codes[5] + 1e-4)})
    torch.testing.assert_close(out.z[:, :, 0, 1], codes[5].expand(5, -1))


def test_a_vqvae_of_vectors_has_a_code_for_each_number(x):
    model = made("VQVAE", num_embeddings=7).eval()
    with torch.no_grad():
        model.quantizer.embeddings.weight.copy_(torch.linspace(-0.5, 0.5, 7)[:, None])
    vae = nv.VAE(model)
    assert vae.sites["latent.z"].shape == (1, LATENT)
    assert vae.verify(x) == 0.0
    assert torch.equal(vae(x), model({"data": x}).recon_x)
    z = model({"data": x}).z.clone()
    z[:, 2] = model.quantizer.embeddings.weight[6]
    out = nv.intervene(vae, x, {"latent.z@2": nv.Quantize(6)})
    torch.testing.assert_close(out.reconstruction, model.decoder(z).reconstruction)
    conforms(vae, x)
    taken = []
    model.decoder.register_forward_pre_hook(lambda decoder, given: taken.append(given[0].shape))
    vae(x)
    assert taken == [(5, LATENT)]  # as pythae hands it to decoders


def test_what_runs_past_the_forward_is_named():
    assert nv.VAE(made("FactorVAE")).self_check.never == ("discriminator",)
    assert nv.VAE(spatial_vq()).self_check.never == ("quantizer.embeddings",)
    assert nv.VAE(made("VAMP")).self_check.never == ("pseudo_inputs",)
    assert set(nv.VAE(made("VAE")).self_check.other) == {"encoder", "decoder"}


@pytest.mark.parametrize("name", ["HVAE", "RHVAE", "PoincareVAE", "SVAE"])
def test_latents_that_no_gaussian_tells_are_refused_with_a_way_out(name, x):
    model = made(name)
    with pytest.raises(nv.AdapterError, match=rf"pythae's {name} .*Posterior\.point"):
        nv.VAE(model)
    vae = nv.adapt(
        model,
        encoder=lambda x: nv.Posterior.point(model.encoder(x)["embedding"]),
        decoder=lambda z: model.decoder(z)["reconstruction"],
    )
    assert torch.equal(vae(x), model.decoder(model.encoder(x).embedding).reconstruction)


def test_a_posterior_that_is_declared_deterministic_is_a_point(x):
    assert float(nv.VAE(made("Adversarial_AE", deterministic_posterior=True)).encode(x).sd.detach().max()) < 1e-12
    assert float(nv.VAE(made("Adversarial_AE")).encode(x).sd.detach().min()) > 0.1


def test_a_descendant_of_ones_own_is_read_too(x):
    class Mine(models.BetaVAE):
        pass

    torch.manual_seed(0)
    vae = nv.VAE(Mine(models.BetaVAEConfig(input_dim=IMAGE, latent_dim=LATENT)))
    assert type(vae.adapter).__name__ == "Pythae"
    assert vae.verify(x) == 0.0
