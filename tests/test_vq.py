"""Vector quantisation against loops and the literal recursion, and the VQ-VAE as a VAE to analyse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import nnsight_vae as nv
from nnsight_vae.errors import DataError
from nnsight_vae.levels.codes import nearest_codes
from nnsight_vae.models import VQVAE
from nnsight_vae.models.architectures import build
from nnsight_vae.models.quantizer import (
    DEAD,
    DECAY,
    VectorQuantizer,
    commitment_loss,
    moving_codes,
    nearest_code,
    perplexity,
)

LEAST = DEAD * 24 / 5  # of the 24 vectors in 3 images of 2x4 positions, over 5 codes


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quantizer(codes: int = 5, channels: int = 3) -> VectorQuantizer:
    """With codes that all are in use."""
    made = VectorQuantizer(codes, channels)
    made.codebook.copy_(normal(codes, channels, seed=1))
    made.usage.fill_(2.0)
    made.sums.copy_(2 * made.codebook)
    return made


def nearest_by_loops(h: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    n, _, height, width = h.shape
    found = torch.zeros(n, height, width, dtype=torch.long)
    for i, row, column in np.ndindex(n, height, width):
        distances = [
            math.dist(h[i, :, row, column].tolist(), codebook[k].tolist()) for k in range(len(codebook))
        ]  # fmt: skip
        found[i, row, column] = distances.index(min(distances))
    return found


def test_each_position_gets_the_nearest_code_to_the_bit():
    h, made = normal(4, 3, 2, 5), quantizer()
    codes = nearest_by_loops(h, made.codebook)
    assert codes.unique().numel() > 3
    assert torch.equal(nearest_code(h, made.codebook), codes)
    assert torch.equal(made(h), made.codebook[codes].movedim(-1, 1))
    assert nearest_code(h.flatten(2)[..., 0], made.codebook).tolist() == codes[:, 0, 0].tolist()  # no positions


def test_nearness_survives_a_codebook_far_from_the_origin():
    """Where distances by a matrix product, |h|^2 - 2 h e + |e|^2, are all rounding; with more than 25 codes torch takes that way."""
    codebook = 1000 + 0.01 * normal(64, 3)
    assert nearest_code(codebook[:, :, None], codebook).flatten().tolist() == list(range(64))


def test_the_gradient_goes_straight_through_to_the_encoding_and_not_to_the_codebook():
    made = quantizer()
    made.codebook.requires_grad_()
    h = normal(2, 3, 2, 2).requires_grad_()
    weight = normal(2, 3, 2, 2, seed=2)
    q = made(h)
    (weight * q.square()).sum().backward()
    torch.testing.assert_close(h.grad, 2 * weight * q.detach())
    assert made.codebook.grad is None


def test_the_commitment_pulls_encodings_to_codes_and_never_codes_to_encodings():
    h, q = normal(4, 3, 2, 2).requires_grad_(), normal(4, 3, 2, 2, seed=1).requires_grad_()
    loss = commitment_loss(h, q)
    total = 0.0
    for index in np.ndindex(4, 3, 2, 2):
        total += (h[index].item() - q[index].item()) ** 2 / 4
    assert loss.item() == pytest.approx(total, rel=1e-5)
    loss.backward()
    torch.testing.assert_close(h.grad, (2 * (h - q) / 4).detach())
    assert q.grad is None


def test_perplexity_counts_codes_in_use():
    assert float(perplexity(torch.tensor([4, 0, 4, 4, 4]))) == pytest.approx(4)
    share = [0.5, 0.3, 0.2]
    expected = math.exp(-sum(p * math.log(p) for p in share))
    assert float(perplexity(torch.tensor([5, 3, 2]))) == pytest.approx(expected)
    assert float(perplexity(torch.tensor([0, 7]))) == 1


def test_the_codebook_follows_the_literal_recursion_of_moving_averages():
    made, generator = quantizer(), torch.Generator().manual_seed(0)
    usage, sums = made.usage.double().tolist(), made.sums.double().tolist()
    codebook = made.codebook.double().tolist()
    for step in range(6):
        h = normal(3, 3, 2, 4, seed=10 + step)
        nearest = nearest_by_loops(h, torch.tensor(codebook))
        told = made.update(h, generator)
        counts = [int((nearest == k).sum()) for k in range(5)]
        for k in range(5):
            mine = [h[i, :, r, c].tolist() for i, r, c in np.ndindex(3, 2, 4) if nearest[i, r, c] == k]
            usage[k] = 0.99 * usage[k] + 0.01 * len(mine)
            sums[k] = [0.99 * sums[k][a] + 0.01 * sum(vector[a] for vector in mine) for a in range(3)]
            codebook[k] = [sums[k][a] / usage[k] for a in range(3)]
        assert float(told) == pytest.approx(float(perplexity(torch.tensor(counts))))
    torch.testing.assert_close(made.codebook.double(), torch.tensor(codebook).double(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(made.usage.double(), torch.tensor(usage).double(), rtol=1e-5, atol=0)


def test_moving_averages_settle_at_the_mean_of_what_is_nearest():
    vectors, nearest = normal(6, 2), torch.tensor([0, 0, 1, 1, 1, 0])
    usage, sums = torch.ones(2), torch.zeros(2, 2)
    for _ in range(400):
        usage, sums = moving_codes(vectors, nearest, usage, sums, decay=0.9)
    torch.testing.assert_close(usage, torch.tensor([3.0, 3.0]))
    torch.testing.assert_close(sums[0] / usage[0], vectors[nearest == 0].mean(0))


def test_a_dead_code_starts_again_at_a_random_encoding_and_the_living_are_left_alone():
    def updated(seed: int) -> tuple[VectorQuantizer, torch.Tensor]:
        made, h = quantizer(), normal(3, 3, 2, 4, seed=7)
        made.usage[2] = 0.0
        made.codebook[2], made.sums[2] = 100.0, 0.0
        made.update(h, torch.Generator().manual_seed(seed))
        return made, h.movedim(1, -1).flatten(0, -2)

    made, vectors = updated(0)
    assert torch.isclose(vectors, made.codebook[2]).all(1).any()
    assert float(made.usage[2]) == pytest.approx(LEAST)
    torch.testing.assert_close(made.sums[2], LEAST * made.codebook[2])
    again, other = updated(0)[0], updated(1)[0]
    assert torch.equal(again.codebook, made.codebook)
    assert not torch.equal(other.codebook[2], made.codebook[2])
    living = [0, 1, 3, 4]
    assert torch.equal(other.codebook[living], made.codebook[living])


@pytest.mark.parametrize(("usage", "dead"), [(LEAST / DECAY * 1.01, False), (LEAST / DECAY * 0.99, True)])
def test_a_code_is_dead_below_a_tenth_of_an_even_usage_and_only_then_is_anything_drawn(usage, dead):
    made, generator = quantizer(), torch.Generator().manual_seed(0)
    made.codebook[2] = 100.0  # nearest to nothing
    made.usage[2], made.sums[2] = usage, 100.0 * usage
    before = generator.get_state()
    made.update(normal(3, 3, 2, 4), generator)
    assert torch.equal(generator.get_state(), before) is not dead
    assert (float(made.codebook[2, 0]) == pytest.approx(100)) is not dead


def test_a_code_that_started_again_and_is_not_used_starts_once_more():
    made, generator = quantizer(), torch.Generator().manual_seed(0)
    made.usage[2] = made.sums[2] = 0.0
    made.update(normal(3, 3, 2, 4), generator)
    first = made.codebook[2].clone()
    h = normal(3, 3, 2, 4, seed=1) - 1000 * (first / first.norm())[:, None, None]  # the encodings have moved on
    made.codebook[0] = made.sums[0] = -1000 * first / first.norm()
    made.usage[0] = 1.0
    made.update(h, generator)
    assert float((made.codebook[2] - first).norm()) > 900


def test_the_first_step_puts_all_codes_where_the_encodings_are_whoever_holds_the_codebook():
    module = build("VQVAE", {"image_shape": (1, 8, 8), "latent": 2, "codes": 9}, torch.Generator().manual_seed(0))
    made = module.quantizer
    assert 0 < made.codebook.abs().max() <= 1 / 9
    assert made.usage.abs().max() == made.sums.abs().max() == 0
    held, h = module.codebook, 50 + normal(3, 2, 4, 4)
    made.update(h, torch.Generator().manual_seed(0))
    assert held is module.codebook
    assert held.min() > 40
    assert torch.isfinite(held).all()
    assert {"quantizer.codebook", "quantizer.usage", "quantizer.sums"} <= module.state_dict().keys()
    assert not any(name.startswith("quantizer") for name, _ in module.named_parameters())


# ---------------------------------------------------------------- as a VAE


@pytest.fixture
def wrapped():
    """A VQ-VAE of 2x2 positions whose codes are encodings of images, with those images."""
    model = build("VQVAE", {"image_shape": (1, 8, 8), "latent": 3, "codes": 6, "channels": (4, 8)}, seeded()).eval()
    x = torch.rand(20, 1, 8, 8, generator=seeded())
    with torch.no_grad():
        vectors = model.encoder(x).movedim(1, -1).flatten(0, -2)
        model.codebook.copy_(vectors[torch.randperm(len(vectors), generator=seeded())[:6]])
        codes = nearest_by_loops(model.encoder(x), model.codebook)
    assert codes.unique().numel() == 6
    return nv.VAE(model, example=x), model, x, codes


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def decoded(model: VQVAE, codes: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.decoder(model.codebook[codes].movedim(-1, 1))


def test_its_latent_is_the_code_at_each_position_and_its_reconstruction_the_modules_own(wrapped):
    vae, model, x, codes = wrapped
    assert vae.adapter.codebook is model.codebook
    assert vae.sites["latent.z"].shape == (3, 2, 2)
    assert vae.verify(x) == 0
    assert vae.adapter.reference(model, x)[1] == "forward(x)"
    assert torch.equal(vae.encode(x).mu, model.codebook[codes].movedim(-1, 1))
    assert torch.equal(nearest_codes(vae, vae.encode(x).mu), codes)
    torch.testing.assert_close(vae(x), decoded(model, codes))
    eps = normal(20, 3, 2, 2)
    torch.testing.assert_close(vae(x, eps=eps), vae(x), rtol=0, atol=1e-6)  # noise has no spread to act on
    with vae.trace(x):
        encoding, code, z = (
            vae.encoder.output.save(),
            vae.quantizer.output.save(),
            vae.latent.z.output.save(),
        )
    assert torch.equal(code, z)
    torch.testing.assert_close(encoding, model.encoder(x))


def test_a_code_put_at_a_position_is_decoded_there(wrapped):
    vae, model, x, codes = wrapped
    out = nv.intervene(vae, x, {"latent.z@1,0": nv.Quantize(4)})
    swapped = codes.clone()
    swapped[:, 1, 0] = 4
    torch.testing.assert_close(out.reconstruction, decoded(model, swapped))
    everywhere = nv.intervene(vae, x, {"latent.z": nv.Quantize(4)})
    torch.testing.assert_close(everywhere.reconstruction, decoded(model, torch.full_like(codes, 4)))


def test_an_encoding_moved_before_quantisation_becomes_another_code(wrapped):
    vae, model, x, codes = wrapped
    out = nv.intervene(vae, x, {"encoder@0,1": nv.Set(model.codebook[5] + 1e-4)})
    swapped = codes.clone()
    swapped[:, 0, 1] = 5
    assert torch.equal(out.z, model.codebook[swapped].movedim(-1, 1))
    torch.testing.assert_close(out.reconstruction, decoded(model, swapped))


def test_perturbing_its_latents_swaps_codes_by_position(wrapped):
    vae, model, x, codes = wrapped
    effects = nv.perturb_latents(vae, x, readout=nv.readouts.Pixels((1, 8, 8)))
    assert effects.units == ("latent.z@0,0", "latent.z@0,1", "latent.z@1,0", "latent.z@1,1")
    assert list(effects.parts) == [f"code {code}" for code in range(6)]
    swapped = codes.clone()
    swapped[:, 1, 1] = 2
    expected = (decoded(model, swapped) - decoded(model, codes)).flatten(1).T
    np.testing.assert_allclose(effects.parts["code 2"].values[3], expected, atol=1e-6)


def test_patching_its_code_from_another_image_is_a_swap_of_codes(wrapped):
    vae, model, x, codes = wrapped
    out = nv.intervene(vae, x, {"latent.z@0,0": nv.Swap(x.flip(0))})
    swapped = codes.clone()
    swapped[:, 0, 0] = codes.flip(0)[:, 0, 0]
    torch.testing.assert_close(out.reconstruction, decoded(model, swapped))


def test_adapt_takes_the_modules_own_codebook_unless_it_is_given_one(wrapped):
    _, model, *_ = wrapped
    assert nv.adapt(model).adapter.codebook is model.codebook
    other = torch.zeros(2, 3)
    assert nv.adapt(model, codebook=other).adapter.codebook is other
    plain = nv.models.MLPVAE()
    assert nv.VAE(plain).adapter.codebook is None
    for no_codebook in (torch.nn.Embedding(4, 8), torch.zeros(8), "codes"):  # of that name, and not rows of numbers
        plain.__dict__["codebook"] = no_codebook
        assert nv.VAE(plain).adapter.codebook is None


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 32, 32), (1, 28, 28), (1, 8, 8), (3, 32, 64)], ids=str)
def test_every_image_size_goes_in_and_comes_out(shape):
    module = VQVAE(image_shape=shape, latent=5, codes=7)
    x = torch.rand(2, *shape, generator=seeded())
    reconstruction, h, q = module(x)
    assert reconstruction.shape == x.shape
    assert h.shape == q.shape
    assert h.shape[1] == 5
    assert 0 < reconstruction.min() < reconstruction.max() < 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"codes": 0}, "latent and codes"), ({"latent": 0}, "latent and codes"), ({"image_shape": (1, 7, 7)}, "halved")],
)
def test_a_network_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(DataError, match=message):
        VQVAE(**arguments)
