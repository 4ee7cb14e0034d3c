"""The wrapper: what it computes, what a trace serves, what it refuses, and that it leaves model and process as they were."""

# ruff: noqa: PT012, SIM117 - a trace is a block of its own inside what it must raise
from __future__ import annotations

import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from vaes import MLPVAE, ConvVAE, all_vaes, images, seeded

import nnsight_vae as nv


@pytest.fixture(params=["conv", "mlp", "batchnorm", "residual"])
def model(request):
    return all_vaes()[request.param]


@pytest.fixture
def conv():
    model = seeded(ConvVAE())
    return model, nv.VAE(model), images(model, 4)


# ---------------------------------------------------------------------- exactness
def test_the_reconstruction_is_the_models_own_bit_for_bit(model):
    x = images(model, 5)
    model.eval()
    with torch.no_grad():
        raw = nv.adapters.find_adapter(model)
        want = model.decode(raw.encode(model, x).mu)
        vae = nv.VAE(model)
        assert torch.equal(vae(x), want)
        assert torch.equal(vae.decode(vae.encode(x).mu), want)
        with vae.trace(x):
            traced = vae.output.save()
        assert torch.equal(traced, want)
    assert vae.verify(x) == 0.0


def test_eps_and_sampling(conv):
    _, vae, x = conv
    posterior = vae.encode(x)
    eps = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    want = vae.decode(posterior.mu + torch.exp(0.5 * posterior.logvar) * eps)
    assert torch.equal(vae(x, eps=eps), want)
    torch.manual_seed(3)
    drawn = vae(x, sample=True)
    torch.manual_seed(3)
    assert torch.equal(drawn, vae(x, eps=torch.randn(4, 5)))
    with vae.trace(x, eps=eps):
        served, out = vae.latent.eps.output.save(), vae.output.save()
    assert torch.equal(served, eps)
    assert torch.equal(out, want)


def test_encode_and_decode_traces_and_their_results(conv):
    _, vae, x = conv
    with vae.trace(x, fn="encode") as tracer:
        read = vae.input.save()
        mu = vae.latent.mu.output.save()
        result = tracer.result.save()
    assert torch.equal(read, x)
    assert torch.equal(mu, vae.encode(x).mu)
    assert torch.equal(result.mu, mu)
    with vae.trace(mu, fn="decode") as tracer:
        vae.latent.z.output[:, 0] = 1.0
        out, result = vae.output.save(), tracer.result.save()
    moved = mu.clone()
    moved[:, 0] = 1.0
    assert torch.equal(out, vae.decode(moved))
    assert torch.equal(result, out)
    assert torch.equal(vae.trace(x, trace=False), vae(x))


def test_gradients_reach_the_input_and_the_sites(conv):
    _, vae, x = conv
    x.requires_grad_()
    with vae.trace(x):
        hidden = vae.encoder[2].output
        gradient = torch.autograd.grad(vae.output.sum(), [x, hidden], retain_graph=True).save()
    want = torch.autograd.grad(vae(x).sum(), x)[0]
    torch.testing.assert_close(gradient[0], want)
    assert gradient[1].abs().sum() > 0


# ---------------------------------------------------------------------- what a saved value is
class Rewriting(nn.Module):
    """A functional in-place op behind a module whose output is a site."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.out = nn.Linear(6, 4), nn.Linear(4, 4), nn.Linear(2, 6)

    def encode(self, x):
        return self.head(F.relu(self.body(x), inplace=True)).chunk(2, 1)

    def decode(self, z):
        return self.out(z)


def test_a_saved_activation_is_what_its_site_computed(conv):
    model, vae, x = conv
    with torch.no_grad():
        want = model.encoder[0](x)
        with vae.trace(x):
            saved = vae.encoder[0].output.save()
    assert torch.equal(saved, want)
    assert (saved < 0).any()
    hooked = []  # plain hooks, Captum's among them, see it too
    handle = model.encoder[0].register_forward_hook(lambda module, args, output: hooked.append(output))
    vae(x)
    handle.remove()
    assert torch.equal(hooked[0], want)
    vae.unwrap()
    assert model.encoder[1].inplace


def test_a_functional_inplace_op_after_a_module_does_not_reach_what_was_saved():
    model = seeded(Rewriting())
    vae, x = nv.VAE(model), torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want, clean = F.linear(x, model.body.weight, model.body.bias), vae(x)
        with vae.trace(x):
            saved = vae.body.output.save()
            out = vae.output.save()
        assert torch.equal(saved, want)
        assert torch.equal(out, clean)
        with vae.trace(x):
            vae.body.output[:, 0] = 5.0  # still an in-place write into the run
            out = vae.output.save()
    assert not torch.allclose(out, clean)


def test_a_write_at_one_site_does_not_change_what_another_served(conv):
    _, vae, x = conv
    mu = vae.encode(x).mu
    with torch.no_grad(), vae.trace(x):
        computed = vae.fc_mu.output.save()
        vae.latent.mu.output[:, 3] = 7.0  # the tap hands on fc_mu's own tensor
        unit = vae.latent.z.output.save()
    assert torch.equal(computed, mu)
    assert (unit[:, 3] == 7.0).all()


def test_a_write_at_the_input_does_not_change_the_callers_tensor(conv):
    _, vae, x = conv
    kept = x.clone()
    with torch.no_grad(), vae.trace(x):
        vae.input[:] = 0.0
        out = vae.output.save()
    assert torch.equal(x, kept)
    assert torch.equal(out, vae(torch.zeros_like(x)))


# ---------------------------------------------------------------------- mistakes
def test_out_of_order_and_unreached_sites_are_named(conv):
    _, vae, x = conv
    with pytest.raises(nv.SiteError, match=r"'encoder\.1' was asked for after this run had passed it"):
        with vae.trace(x):
            z = vae.latent.z.output.save()  # noqa: F841
            late = vae.encoder[1].output.save()  # noqa: F841
    with pytest.raises(nv.SiteError, match=r"'fc_mu'.*fn='decode'"):
        with vae.trace(torch.zeros(2, 5), fn="decode"):
            never = vae.fc_mu.output.save()
    with pytest.raises(nv.SiteError, match="'output'"):
        with vae.trace(x, fn="encode"):
            never = vae.output.save()  # noqa: F841
    assert torch.equal(vae(x), vae(x))


def test_a_trace_without_input_says_so(conv):
    _, vae, x = conv
    with pytest.raises(nv.DataError, match=r"no input.*vae\.trace\(x\)"):
        with vae.trace():
            vae.output.save()
    assert torch.equal(vae(x), vae(x))


def test_a_trace_inside_a_trace_is_refused_and_plain_calls_are_not(conv):
    _, vae, x = conv
    want = vae(x)
    with pytest.raises(nv.NnsightVaeError, match="traced already"):
        with vae.trace(x):
            z = vae.latent.z.output
            nv.intervene(vae, x, {"latent.z": nv.Zero()})
    with torch.no_grad(), vae.trace(x):
        mu = vae.fc_mu.output
        inside = vae(x).save()
        posterior = vae.encode(x).mu.save()
        decoded = vae.decode(mu).save()
        z = vae.latent.z.output.save()
    assert torch.equal(inside, want)
    assert torch.equal(decoded, want)
    assert torch.equal(posterior, z)
    with pytest.raises(nv.NnsightVaeError, match="unwrapped inside"):
        with vae.trace(x):
            z = vae.latent.z.output
            vae.unwrap()
    with pytest.raises(nv.NnsightVaeError, match="no function of a VAE"):
        vae.trace(x, fn="reparameterize")


@pytest.mark.parametrize("interrupt", [RuntimeError, KeyboardInterrupt])
def test_an_exception_in_the_block_or_the_model_leaves_everything_usable(interrupt, conv):
    model, vae, x = conv
    want = vae(x)
    model.train()
    model.decoder[0].eval()
    flags = {name: m.training for name, m in model.named_modules()}

    def fail(*_):
        raise interrupt("stop")

    with pytest.raises(interrupt):
        with vae.trace(x):
            z = vae.latent.z.output
            raise interrupt("stop")
    hook = model.decoder[2].register_forward_hook(fail)
    with pytest.raises(interrupt):
        with vae.trace(x):
            z = vae.output.save()  # noqa: F841
    with pytest.raises(interrupt):
        vae(x)
    hook.remove()
    assert {name: m.training for name, m in model.named_modules()} == flags
    with vae.trace(x):
        out = vae.output.save()
    assert torch.equal(out, want)


# ---------------------------------------------------------------------- threads, captum, global state
def test_threads_share_one_vae(conv):
    model, vae, _ = conv
    model.train()
    batches = [images(model, 3, seed=s) for s in range(4)]
    want = [vae(batch).detach() for batch in batches]
    errors, checked = [], []

    def work(i: int) -> None:
        try:
            for _ in range(8):
                with torch.no_grad(), vae.trace(batches[i]):
                    z = vae.latent.z.output.save()
                    out = vae.output.save()
                plain = vae(batches[i])
                posterior = vae.encode(batches[i])
                raw = model.decode(z)  # the bare module while another thread traces
                checked.append(all(torch.equal(v, want[i]) for v in (out, plain, raw)) and torch.equal(posterior.mu, z))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert checked == [True] * 32
    assert model.training


def test_captum_reads_a_tap(conv):
    from captum.attr import LayerActivation

    _, vae, x = conv
    z = LayerActivation(vae, vae.latent.z._module).attribute(x)
    assert torch.equal(z, vae.encode(x).mu)


def test_nothing_global_and_nothing_of_the_module_changes(model):
    x = images(model, 4)
    seen = []
    model.register_forward_hook(lambda *a: seen.append(1))
    next(model.parameters()).requires_grad_(False)
    before = {k: (v.clone(), v.requires_grad) for k, v in [*model.named_parameters(), *model.named_buffers()]}
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    state = torch.get_rng_state()
    model.train()
    vae = nv.VAE(model)
    vae.verify(x)
    vae(x), vae.encode(x), vae.decode(vae.encode(x).mu)
    nv.intervene(vae, x, {"latent.z[0]": nv.Set(1.0)})
    with vae.trace(x):
        out = vae.output.save()  # noqa: F841
    assert torch.equal(torch.get_rng_state(), state)
    assert all(m.training for m in model.modules())
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        assert torch.equal(tensor, before[name][0])
        assert tensor.requires_grad == before[name][1]


def test_wrapping_a_model_that_draws_leaves_the_random_state():
    class Dithering(MLPVAE):
        def decode(self, z):
            return super().decode(z + 1e-3 * torch.randn_like(z))

    model = seeded(Dithering())
    state = torch.get_rng_state()
    nv.VAE(model)
    assert torch.equal(torch.get_rng_state(), state)


def test_it_works_under_inference_mode():
    model = seeded(MLPVAE())
    x = images(model, 2)
    with torch.inference_mode():
        vae = nv.VAE(model)
        out = vae(x)
        with vae.trace(x):
            traced = vae.output.save()
    assert torch.equal(out, traced)


def test_the_repr_lists_sites_and_the_state(conv):
    _, vae, _ = conv
    text = repr(vae)
    assert text.splitlines()[0] == "VAE(ConvVAE, EncodeDecode)"
    assert "encoder.0" in text
    assert "5 units" in text
    vae.unwrap()
    assert repr(vae) == "VAE(ConvVAE, EncodeDecode), unwrapped"


def test_batch_statistics_in_eval_mode_are_warned_of():
    model = seeded(ConvVAE(norm=True))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
    with pytest.warns(nv.NnsightVaeWarning, match=r"encoder\.1, encoder\.4, decoder\.4: normalises over the batch"):
        nv.VAE(model)


def test_edits_stay_on_their_twin_which_needs_no_other():
    model = seeded(ConvVAE())
    held, x = [nv.VAE(model)], images(model, 2)
    mu = held[0].encode(x).mu
    with held[0].edit() as (_, edited):
        edited.latent.z.output[:, 0] = 5.0
    with torch.no_grad(), held[0].trace(x):
        plain = held[0].latent.z.output.save()
    held.clear()
    with torch.no_grad(), edited.trace(x):
        z = edited.latent.z.output.save()
    assert torch.equal(plain, mu)
    assert (z[:, 0] == 5.0).all()


def test_assigning_to_a_site_instead_of_its_output_is_refused_and_harms_nothing():
    vae = nv.VAE(seeded(ConvVAE()))
    x = images(vae.module, 2)
    with pytest.raises(nv.SiteError, match=r"z\.output"), torch.no_grad(), vae.trace(x):
        vae.latent.z = torch.zeros(2, 5)
    with torch.no_grad(), vae.trace(x):
        z = vae.latent.z.output.save()
    assert z.shape == (2, 5)
