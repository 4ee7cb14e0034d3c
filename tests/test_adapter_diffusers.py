"""Autoencoders of diffusers against their own calls, at sizes that run in a moment."""

from __future__ import annotations

import pytest
import torch
from matrix import conforms, seeded

import nnsight_vae as nv

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed (pip install 'nnsight-vae[diffusers]')")
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")  # the library's own

BLOCKS = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1}
TWO = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
VIDEO = {"latent_channels": 4, "block_out_channels": (8, 16)}


def kl(**options):
    return diffusers.AutoencoderKL(**BLOCKS, **TWO, latent_channels=4, **options)


def vq(**options):
    return diffusers.VQModel(**BLOCKS, **TWO, latent_channels=3, num_vq_embeddings=8, vq_embed_dim=4, **options)


def tiny():
    return diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )


def dc():
    halves = {"block_out_channels": (8, 16), "block_types": ("ResBlock",) * 2, "layers_per_block": (1, 1)}
    both = {f"{half}_{name}": value for half in ("encoder", "decoder") for name, value in halves.items()}
    none = {f"{half}_qkv_multiscales": ((), ()) for half in ("encoder", "decoder")}
    return diffusers.AutoencoderDC(latent_channels=4, attention_head_dim=8, **both, **none)


def wan():
    return diffusers.AutoencoderKLWan(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )


def cogvideo():
    return diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 2,
        up_block_types=("CogVideoXUpBlock3D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        temporal_compression_ratio=1,
        **VIDEO,
    )


def oobleck():
    return diffusers.AutoencoderOobleck(
        encoder_hidden_size=8,
        downsampling_ratios=[2, 4],
        channel_multiples=[1, 2],
        decoder_channels=8,
        decoder_input_channels=4,
        audio_channels=2,
    )


IMAGE, FRAME = (3, 8, 8), (3, 1, 8, 8)
MODELS = {
    "kl": (kl, IMAGE),
    "tiny": (tiny, IMAGE),
    "dc": (dc, IMAGE),
    "vq": (vq, IMAGE),
    "wan": (wan, FRAME),
    "cogvideo": (cogvideo, FRAME),
    "oobleck": (oobleck, (2, 64)),
}


def made(make, **options):
    torch.manual_seed(0)
    return make(**options).eval()


def inputs(*shape, n=4):
    return torch.rand(n, *shape, generator=seeded()) * 2 - 1


def trained_vq(x):
    """Codes that are encodings of images: at random all images would have one code."""
    model = made(vq)
    with torch.no_grad():
        encodings = model.encode(x).latents.movedim(1, -1).flatten(0, -2)
        model.quantize.embedding.weight.copy_(encodings[torch.randperm(len(encodings), generator=seeded())[:8]])
    return model


@pytest.mark.parametrize("name", MODELS)
def test_a_wrapped_autoencoder_gives_its_own_reconstruction(name):
    make, shape = MODELS[name]
    model, x = made(make), inputs(*shape)
    vae = nv.VAE(model, example=x)
    assert vae.verify(x) == 0.0
    own = model.decode(model.encode(x).latents).sample if name == "tiny" else model(x).sample
    assert torch.equal(vae(x), own)
    own_modules = dict(model.named_modules())
    assert all(name in own_modules for name, site in vae.sites.items() if site.stage in ("encoder", "decoder"))


@pytest.mark.parametrize("name", ["kl", "tiny", "dc"])
def test_every_level_runs_on_it(name):
    make, shape = MODELS[name]
    x = inputs(*shape)
    conforms(nv.VAE(made(make), example=x), x)


def test_every_level_runs_on_its_codes():
    x = inputs(*IMAGE)
    conforms(nv.VAE(trained_vq(x), example=x), x)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wan", "cogvideo", "oobleck"])
def test_every_level_runs_on_single_frames_of_video_and_on_audio(name):
    make, shape = MODELS[name]
    x = inputs(*shape)
    conforms(nv.VAE(made(make), example=x), x)


def test_the_posterior_of_a_kl_autoencoder_is_its_own_and_no_scaling_factor_enters():
    model, x = made(kl, scaling_factor=0.3), inputs(*IMAGE)
    vae = nv.VAE(model, example=x)
    own = model.encode(x).latent_dist
    assert torch.equal(vae.encode(x).mu, own.mean)
    assert torch.equal(vae.encode(x).logvar, own.logvar)
    assert vae.sites["latent.z"].shape == (4, 4, 4)
    eps = torch.randn(4, 4, 4, 4, generator=seeded(1))
    torch.testing.assert_close(vae(x, eps=eps), model.decode(own.mean + own.std * eps).sample)
    assert {"quant_conv", "post_quant_conv", "encoder.down_blocks.0.resnets.0.conv1"} <= set(vae.sites)


def test_an_audio_posterior_keeps_its_scale():
    x = inputs(2, 64)
    model = made(oobleck)
    own = model.encode(x).latent_dist
    torch.testing.assert_close(nv.VAE(model, example=x).encode(x).sd, own.std)


@pytest.mark.parametrize("name", ["tiny", "dc"])
def test_autoencoders_that_state_no_spread_have_a_point_as_posterior(name):
    make, shape = MODELS[name]
    model, x = made(make), inputs(*shape)
    vae = nv.VAE(model, example=x)
    assert float(vae.encode(x).sd.detach().max()) < 1e-12
    encoded = model.encode(x)
    assert torch.equal(vae.encode(x).mu, encoded.latents if name == "tiny" else encoded.latent)


def test_gradients_pass_where_the_forward_rounds_to_bytes():
    model, given = made(tiny), inputs(*IMAGE).requires_grad_()
    model(given).sample.sum().backward()
    assert given.grad is None
    nv.VAE(model, example=given)(given).sum().backward()
    assert given.grad.abs().max() > 0


def test_slicing_and_tiling_are_off_while_it_is_analysed_and_on_again_after():
    model, x = made(kl, sample_size=16), inputs(3, 32, 32)
    whole = model(x).sample.detach()
    model.enable_tiling()
    model.enable_slicing()
    assert not torch.allclose(model(x).sample, whole, atol=1e-3)  # tiled values are others
    vae = nv.VAE(model, example=x)
    torch.testing.assert_close(vae(x).detach(), whole)
    assert vae.verify(x) == 0.0
    assert not {"encoder", "quant_conv", "decoder"} & set(vae.self_check.repeated)
    with torch.no_grad(), vae.trace(x):
        moments = vae.quant_conv.output.save()
    assert moments.shape == (4, 8, 16, 16)
    with pytest.raises(ZeroDivisionError), vae.trace(x):
        vae.quant_conv.output[:] = 1 / 0
    assert model.use_slicing
    assert model.use_tiling


def test_a_code_put_at_a_position_is_decoded_there():
    x = inputs(*IMAGE)
    model = trained_vq(x)
    vae = nv.VAE(model, example=x)
    quantised, _, (_, _, indices) = model.quantize(model.encode(x).latents)
    assert torch.equal(vae.encode(x).mu, quantised)
    codes = indices.view(4, 4, 4).clone()
    assert len(codes.unique()) > 4
    codes[:, 2, 3] = 5

    def decoded(codes):
        z = model.quantize.embedding(codes).movedim(-1, 1)
        return model.decode(z, force_not_quantize=True).sample

    out = nv.intervene(vae, x, {"latent.z@2,3": nv.Quantize(5)})
    torch.testing.assert_close(out.reconstruction, decoded(codes))
    codes = indices.view(4, 4, 4).clone()
    codes[:, 0, 0] = codes.flip(0)[:, 0, 0]
    out = nv.intervene(vae, x, {"latent.z@0,0": nv.Swap(x.flip(0))})
    torch.testing.assert_close(out.reconstruction, decoded(codes))


def test_an_encoding_moved_before_quantisation_becomes_another_code():
    x = inputs(*IMAGE)
    model = trained_vq(x)
    codes = model.quantize.embedding.weight.detach()
    out = nv.intervene(nv.VAE(model, example=x), x, {"quant_conv@1,1": nv.Set(codes[7] + 1e-5)})
    torch.testing.assert_close(out.z[:, :, 1, 1], codes[7].expand(4, -1))


def test_a_decoder_that_is_normalised_by_the_codes_gets_them():
    """norm_type="spatial" (MOVQ) hands the codes to every norm of the decoder."""
    torch.manual_seed(0)
    options = {**BLOCKS, "block_out_channels": (32, 32), "norm_num_groups": 32}
    movq = diffusers.VQModel(
        **options, **TWO, latent_channels=4, num_vq_embeddings=8, vq_embed_dim=4, norm_type="spatial"
    ).eval()
    x = inputs(*IMAGE)
    vae = nv.VAE(movq, example=x)
    assert vae.verify(x) == 0.0


def test_other_models_of_the_library_are_no_vaes():
    unet = diffusers.UNet2DModel(
        block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), norm_num_groups=4
    )
    with pytest.raises(nv.AdapterError, match="UNet2DModel does not look like a VAE"):
        nv.VAE(unet)
