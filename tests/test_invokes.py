"""Several inputs in one trace: equal to as many traces, refused where rows would be mixed up, and cheap."""

# ruff: noqa: PT012, SIM117 - a trace is a block of its own inside what it must raise
from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from vaes import ConvVAE, all_vaes, images, seeded

import nnsight_vae as nv


@pytest.mark.parametrize("name", ["conv", "mlp", "batchnorm", "residual"])
def test_invokes_equal_separate_traces_each_with_its_own_noise(name):
    model = all_vaes()[name]
    vae = nv.VAE(model)
    batches = [images(model, n, seed=n) for n in (1, 3, 2)]
    latent = vae.encode(batches[0]).mu.shape[1:]
    noise = [torch.randn(len(x), *latent, generator=torch.Generator().manual_seed(i)) for i, x in enumerate(batches)]
    with torch.no_grad():
        with vae.trace() as tracer:
            with tracer.invoke(batches[0], eps=noise[0]):
                vae.latent.z.output[:, 0] = 3.0  # in place
                a = vae.output.save()
            with tracer.invoke(batches[1], eps=noise[1]):
                b = vae.output.save()
            with tracer.invoke(batches[2], eps=noise[2]):
                vae.latent.z.output = vae.latent.z.output * 2.0  # by assignment
                c = vae.output.save()
            with tracer.invoke():
                everything = vae.latent.z.output.save()
        assert len(everything) == 6
        torch.testing.assert_close(b, vae(batches[1], eps=noise[1]))
        with vae.trace(batches[0], eps=noise[0]):
            vae.latent.z.output[:, 0] = 3.0
            alone = vae.output.save()
        torch.testing.assert_close(a, alone)
        with vae.trace(batches[2], eps=noise[2]):
            vae.latent.z.output = vae.latent.z.output * 2.0
            alone = vae.output.save()
        torch.testing.assert_close(c, alone)


def test_invokes_in_encode_and_decode_traces():
    model = seeded(ConvVAE())
    vae, a, b = nv.VAE(model), images(model, 2), images(model, 1, seed=5)
    with torch.no_grad():
        with vae.trace(fn="encode") as tracer:
            with tracer.invoke(a):
                first = tracer.result.save()
            with tracer.invoke(b):
                second = tracer.result.save()
        torch.testing.assert_close(first.mu, vae.encode(a).mu)
        torch.testing.assert_close(second.logvar, vae.encode(b).logvar)
        with vae.trace(fn="decode") as tracer:
            with tracer.invoke(first.mu):
                vae.latent.z.output = torch.zeros(2, 5)
                zero = vae.output.save()
            with tracer.invoke(second.mu):
                kept = vae.output.save()
    torch.testing.assert_close(zero, vae.decode(torch.zeros(2, 5)))
    torch.testing.assert_close(kept, vae(b))


def test_gradients_of_batched_writes():
    model = seeded(ConvVAE())
    vae, a, b = nv.VAE(model), images(model, 2), images(model, 2, seed=5)
    shift = torch.zeros(2, 5, requires_grad=True)
    with vae.trace() as tracer:
        with tracer.invoke(a):
            vae.latent.z.output = vae.latent.z.output + shift
            out = vae.output.save()
        with tracer.invoke(b):
            vae.latent.z.output = (
                vae.latent.z.output**2
            )  # autograd keeps what the first write made: it must not be overwritten
            other = vae.output.save()
    got = torch.autograd.grad(out.sum(), shift, retain_graph=True)[0]
    z = vae.encode(a).mu.detach().requires_grad_()
    torch.testing.assert_close(got, torch.autograd.grad(vae.decode(z).sum(), z)[0])
    assert torch.autograd.grad(other.sum(), shift)[0].abs().max() == 0


@pytest.mark.parametrize("what", [torch.zeros(3, 5), torch.zeros(1, 5), torch.zeros(2, 1), torch.zeros(2)])
def test_a_write_with_other_rows_is_refused(what):
    model = seeded(ConvVAE())
    vae, x = nv.VAE(model), images(model, 2)
    with pytest.raises(nv.DataError, match=r"keep its rows: expected shape \(2, 5\)"):
        with vae.trace() as tracer:
            with tracer.invoke(x):
                vae.latent.z.output = what
            with tracer.invoke(x):
                never = vae.output.save()  # noqa: F841


def test_other_mistakes_in_invokes_are_refused():
    model = seeded(ConvVAE())
    vae, x = nv.VAE(model), images(model, 2)
    with pytest.raises(nv.DataError, match="takes a tensor, got float"):
        with vae.trace(x):
            vae.latent.z.output = 0.0
    with pytest.raises(nv.DataError, match="rows skipped"):
        with vae.trace() as tracer:
            with tracer.invoke(x):
                vae.latent.z.skip(torch.zeros(3, 5))
            with tracer.invoke(x):
                vae.latent.z.skip(torch.zeros(2, 5))
    with pytest.raises(nv.DataError, match="every invoke of the trace to skip"):
        with vae.trace() as tracer:
            with tracer.invoke(x):
                vae.latent.z.skip(torch.zeros(2, 5))
            with tracer.invoke(x):
                never = vae.output.save()
    with pytest.raises(nv.DataError, match="give eps= to all"):
        with vae.trace() as tracer:
            with tracer.invoke(x, eps=torch.zeros(2, 5)):
                never = vae.output.save()
            with tracer.invoke(x):
                never = vae.output.save()
    with pytest.raises(nv.DataError, match="non-empty"):
        with vae.trace() as tracer:
            with tracer.invoke(x):
                never = vae.output.save()
            with tracer.invoke(x[:0]):
                never = vae.output.save()
    convolutional = all_vaes()["residual"]
    vae = nv.VAE(convolutional)
    with pytest.raises(nv.DataError, match="inputs of one shape"):
        with vae.trace() as tracer:
            with tracer.invoke(torch.zeros(1, 1, 8, 8)):
                never = vae.output.save()
            with tracer.invoke(torch.zeros(1, 1, 16, 16)):
                never = vae.output.save()  # noqa: F841


# ---------------------------------------------------------------------- what writes cost, and what they leave alone
class Copies(TorchFunctionMode):
    """Counts whole-batch copies."""

    def __init__(self, rows):
        super().__init__()
        self.rows, self.count = rows, 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.cat, torch.Tensor.clone) and isinstance(args[0], Tensor | list):
            size = sum(len(t) for t in args[0]) if isinstance(args[0], list) else len(args[0])
            self.count += size == self.rows and (args[0][0] if isinstance(args[0], list) else args[0]).shape[-1] == 5
        return func(*args, **(kwargs or {}))


def test_many_replacements_copy_the_batch_once():
    model = seeded(ConvVAE())
    vae, x, k = nv.VAE(model), images(model, 1), 24
    with torch.no_grad(), Copies(k) as copies:
        with vae.trace() as tracer:
            for i in range(k):
                with tracer.invoke(x):
                    vae.latent.z.output = torch.full((1, 5), float(i))
            with tracer.invoke():
                z = vae.latent.z.output.save()
    assert z[:, 0].tolist() == list(range(k))
    assert copies.count <= 2


def test_a_replacement_downstream_does_not_change_what_was_saved_upstream():
    """The batcher's own copy must not outlive its location: the tap hands on the very tensor that fc_mu's writer made."""
    model = seeded(ConvVAE())
    vae, x = nv.VAE(model), images(model, 2)
    vae.interleaver.overwritten.clear()  # without the copy that is made where memory is shared
    with torch.no_grad(), vae.trace() as tracer:
        with tracer.invoke(x):
            vae.fc_mu.output = torch.ones(2, 5)
            vae.latent.mu.output = torch.full((2, 5), 9.0)
        with tracer.invoke(x):
            vae.fc_mu.output = torch.zeros(2, 5)
            saved = vae.fc_mu.output.save()
            vae.latent.mu.output = torch.full((2, 5), 8.0)
            z = vae.latent.z.output.save()
    assert (saved == 0.0).all()
    assert (z == 8.0).all()


def test_a_whole_batch_reader_keeps_what_it_was_given():
    model = seeded(ConvVAE())
    vae, x = nv.VAE(model), images(model, 2)
    with torch.no_grad(), vae.trace() as tracer:
        with tracer.invoke(x):
            vae.latent.z.output = torch.ones(2, 5)
        with tracer.invoke():
            between = vae.latent.z.output.save()
        with tracer.invoke(x):
            vae.latent.z.output = torch.full((2, 5), 2.0)
            out = vae.output.save()
    assert (between[:2] == 1.0).all()
    assert (between[2:] != 2.0).any()
    torch.testing.assert_close(out, vae.decode(torch.full((2, 5), 2.0)))
