"""Wrapping, unwrapping, wrapping again, copying and pickling: the user's module is theirs, before, during and after."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import warnings

import pytest
import torch
from nnsight import NNsight
from torch import nn
from vaes import MLPVAE, ConvVAE, all_vaes, images, seeded

import nnsight_vae as nv


class InstanceForward(nn.Module):
    """A layer that picked its forward at construction."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(20, 8)
        self.forward = self._fast

    def _fast(self, x):
        return self.layer(x)


class Picked(nn.Module):
    image = (20,)

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = InstanceForward(), nn.Linear(4, 20)

    def encode(self, x):
        return self.encoder(x).chunk(2, 1)

    def decode(self, z):
        return self.decoder(z)

    def forward(self, x):
        return self.decode(self.encode(x)[0])


MODELS = {**all_vaes(), "instance forward": seeded(Picked())}


def used(vae, x):
    """Exercise everything that leaves traces."""
    vae.verify(x)
    with vae.trace(x):
        z = vae.latent.z.output.save()  # noqa: F841
    nv.intervene(vae, x, {"latent.z": nv.Zero()})
    return vae


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("how", ["unwrap", "forget", "fail"])
def test_the_module_is_byte_for_byte_what_it_was(name, how):
    model = copy.deepcopy(MODELS[name])
    before = pickle.dumps(model)
    x = images(model, 3)
    if how == "unwrap":
        vae = used(nv.VAE(model), x)
        assert pickle.dumps(model) != before
        assert vae.unwrap() is model
        assert vae.unwrap() is model
    elif how == "forget":
        used(nv.VAE(model), x)
        gc.collect()
    else:
        with pytest.raises(nv.DataError) as kept:  # the error keeps the half-made wrapper alive
            nv.VAE(model, example=torch.zeros(2, 3))
        assert "cannot run x" in str(kept.value)
    assert pickle.dumps(model) == before


def test_script_export_and_compile_work_after_unwrap():
    from nnsight_vae.models import ConvVAE as ScriptableVAE

    model = ScriptableVAE(image_shape=(1, 16, 16), latent=3).eval()
    x = torch.rand(2, 1, 16, 16)
    want = model(x)[0].detach()
    used(nv.VAE(model), x)
    vae = nv.VAE(model)
    with pytest.raises(AttributeError, match="Controller"):
        torch.jit.script(model)
    vae.unwrap()
    assert torch.equal(torch.jit.script(model)(x)[0], want)
    assert torch.equal(torch.export.export(model, (x,)).module()(x)[0], want)
    assert torch.equal(torch.compile(model, backend="eager", fullgraph=True)(x)[0], want)
    torch._dynamo.reset()


def test_a_retired_wrapper_says_so():
    model = seeded(ConvVAE())
    x = images(model, 2)
    vae = nv.VAE(model)
    vae.unwrap()
    for call in (
        lambda: vae(x),
        lambda: vae.encode(x),
        lambda: vae.decode(torch.zeros(2, 5)),
        lambda: vae.verify(x),
        lambda: vae.trace(x),
        lambda: nv.intervene(vae, x, {"latent.z": nv.Zero()}),
    ):
        with pytest.raises(nv.AdapterError, match="was unwrapped"):
            call()


def test_wrapping_again_retires_the_older_wrapper():
    model = seeded(ConvVAE())
    before = pickle.dumps(model)
    x = images(model, 2)
    first = nv.VAE(model)
    second = nv.VAE(model)
    third = nv.VAE(second)  # a VAE in place of its module
    assert third.module is model
    for older in (first, second):
        with pytest.raises(nv.AdapterError, match="wrapped again"):
            older(x)
    with third.trace(x):
        saved = third.encoder[0].output.save()
    assert (saved < 0).any()  # the in-place ReLU is still held off
    third.unwrap()
    assert pickle.dumps(model) == before


def test_wrapping_a_part_retires_the_wrapper_of_the_whole():
    model = seeded(ConvVAE())
    before = pickle.dumps(model)
    whole = nv.VAE(model)
    head = nn.Linear(12, 10)
    part = nv.adapt(
        encoder=nn.Sequential(model.encoder, head), decoder=model.decoder, packed=True, example=images(model, 2)
    )
    with pytest.raises(nv.AdapterError, match="wrapped again"):
        whole(images(model, 2))
    whole.unwrap()
    with part.trace(images(model, 2)):
        served = part.decoder[0].output.save()
    assert served.shape == (2, 96)
    part.unwrap()
    assert pickle.dumps(model) == before


def test_beside_a_plain_nnsight_wrapper():
    model = seeded(ConvVAE())
    plain, x = NNsight(model), images(model, 2)
    before = pickle.dumps(model)
    vae = used(nv.VAE(model), x)
    with vae.trace(x):
        ours = vae.encoder[0].output.save()
    vae.unwrap()
    assert pickle.dumps(model) == before
    with plain.trace(x):
        theirs = plain.encoder[0].output.clone().save()
    assert torch.equal(ours, theirs)


def test_a_forward_replaced_while_wrapped_is_kept():
    model = seeded(ConvVAE())
    vae = nv.VAE(model)
    replaced = nn.Identity().forward
    model.decoder[6].forward = replaced
    vae.unwrap()
    assert model.decoder[6].__dict__["forward"] == replaced
    assert "__nnsight__" not in model.encoder[0].__dict__


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda vae: pickle.loads(pickle.dumps(vae))], ids=["deepcopy", "pickle"]
)
def test_a_copy_is_independent_and_equal(name, how):
    model = copy.deepcopy(MODELS[name])
    x = images(model, 3)
    vae = nv.VAE(model, example=x)
    twin = how(vae)
    want = vae(x)
    assert torch.equal(twin(x), want)
    assert list(twin.sites) == list(vae.sites)
    with torch.no_grad():
        next(twin.module.parameters()).zero_()
    assert torch.equal(vae(x), want)
    assert not torch.equal(twin(x), want)
    with vae.trace(x), torch.no_grad():
        vae.latent.z.output[:] = 0.0
        out = vae.output.save()
    assert not torch.equal(out, want)
    bare = how(vae).unwrap()
    for ours, original in zip(bare.modules(), MODELS[name].modules(), strict=True):
        assert list(ours.__dict__) == list(original.__dict__)
        assert getattr(ours, "inplace", None) == getattr(original, "inplace", None)


def test_copies_of_adapters_run_the_copied_module():
    model = seeded(MLPVAE())
    x = images(model, 3)
    vae = nv.adapt(model, encoder=model.encode, decoder=model.decode, example=x)
    for twin in (copy.deepcopy(vae), pickle.loads(pickle.dumps(vae))):
        assert list(twin.sites) == list(vae.sites)
        with torch.no_grad():
            twin.module.dec2.weight.zero_()
        assert not torch.equal(twin(x), vae(x))
    closed = nv.adapt(model, encoder=lambda x: model.encode(x), decoder=lambda z: model.decode(z), example=x)
    with pytest.raises(nv.AdapterError, match="cannot be copied"):
        copy.deepcopy(closed)


def test_the_wrapped_module_itself_can_be_saved_and_copied():
    model = seeded(ConvVAE()).eval()
    x = images(model, 2)
    vae = nv.VAE(model)
    buffer = io.BytesIO()
    torch.save(vae.module, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    twin = copy.deepcopy(vae.module)
    assert list(vae.module.state_dict()) == list(seeded(ConvVAE()).state_dict())
    for other in (loaded, twin):
        assert torch.equal(other.decode(other.encode(x)[0]), vae(x))
        assert torch.equal(nv.VAE(other)(x), vae(x))


def test_the_fingerprint_is_of_the_weights():
    model = seeded(ConvVAE(norm=True))
    vae = nv.VAE(model)
    first = vae.fingerprint
    assert first == nv.VAE(copy.deepcopy(vae)).fingerprint
    assert len(first) == 16
    with torch.no_grad():
        model.encoder[0].bias[0] += 1e-3
    assert vae.fingerprint != first


def test_what_cannot_be_wrapped_is_refused():
    for thing in (3, ConvVAE, lambda x: x, torch.jit.script(nn.Linear(2, 2))):
        with pytest.raises(nv.AdapterError, match="wraps a torch"):
            nv.VAE(thing)
    model = seeded(ConvVAE())
    for adapter in (nv.adapters.EncodeDecode, 3):
        with pytest.raises(nv.AdapterError, match="must be an instance"):
            nv.VAE(model, adapter)
    vae = nv.VAE(model)
    with pytest.raises(nv.AdapterError, match="would not change the model"):
        vae.decoder = nn.Linear(2, 2)
    vae.probe_head = nn.Linear(5, 1)  # nnsight's way to bring a module of one's own along
    assert "probe_head" not in dict(model.named_children())


def test_wrapping_says_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for model in all_vaes().values():
            nv.VAE(model)
