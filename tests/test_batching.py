"""Several invokes in one trace: each sees, and writes, its own rows and nothing else, whatever modules return."""

# ruff: noqa: SIM117 - a trace is a block of its own inside what it must raise
from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass, fields

import pytest
import torch
from torch import Tensor, nn
from vaes import images, seeded

import nnsight_vae as nv

Pair = namedtuple("Pair", "first second")


@dataclass
class Plain:
    value: Tensor
    loss: Tensor


@dataclass
class Library(OrderedDict):
    """As diffusers' BaseOutput: a dict and a dataclass, with a required field, so that `.copy()` fails."""

    value: Tensor
    loss: Tensor | None = None

    def __post_init__(self):
        for field in fields(self):
            if (found := getattr(self, field.name)) is not None:
                OrderedDict.__setitem__(self, field.name, found)


class Returns(nn.Module):
    """Hands its input on inside a container, beside a 0-dim loss."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x):
        return self.make(x * 1.0, x.square().mean())


class Container(nn.Module):
    image = (6,)

    def __init__(self, make, take):
        super().__init__()
        self.body, self.wrap, self.head, self.out = nn.Linear(6, 4), Returns(make), nn.Linear(4, 4), nn.Linear(2, 6)
        self.take = take

    def encode(self, x):
        return self.head(self.take(self.wrap(self.body(x)))).chunk(2, 1)

    def decode(self, z):
        return self.out(z)


CONTAINERS = {
    "dict": (lambda v, loss: {"value": v, "loss": loss}, lambda o: o["value"]),
    "ordered dict": (lambda v, loss: OrderedDict(value=v, loss=loss), lambda o: o["value"]),
    "dataclass": (Plain, lambda o: o.value),
    "library output": (Library, lambda o: o["value"]),
    "tuple": (lambda v, loss: (v, loss), lambda o: o[0]),
    "namedtuple": (Pair, lambda o: o.first),
    "list": (lambda v, loss: [v, loss], lambda o: o[0]),
}


def replaced(output, take, value):
    """The same container around another value."""
    if isinstance(output, Library):
        return Library(value, output.loss)
    if isinstance(output, dict):
        return type(output)({**output, "value": value})
    if isinstance(output, Plain):
        return Plain(value, output.loss)
    if isinstance(output, Pair):
        return Pair(value, output.second)
    return type(output)([value, output[1]])


@pytest.fixture(params=CONTAINERS)
def container(request):
    make, take = CONTAINERS[request.param]
    model = seeded(Container(make, take))
    return nv.VAE(model), take, images(model, 2, seed=1), images(model, 3, seed=2)


def test_container_outputs_are_scoped_and_scalars_pass(container):
    vae, take, a, b = container
    with torch.no_grad():
        with vae.trace() as tracer:
            with tracer.invoke(a):
                first = vae.wrap.output.save()
            with tracer.invoke(b):
                second = vae.wrap.output.save()
        with vae.trace(a):
            alone = vae.wrap.output.save()
    assert type(first) is type(alone)
    torch.testing.assert_close(take(first), take(alone))
    assert take(second).shape == (3, 4)


def test_writes_into_containers_stay_in_their_rows(container):
    vae, take, a, b = container
    with torch.no_grad():
        clean_a, clean_b = vae(a), vae(b)
        with vae.trace() as tracer:
            with tracer.invoke(a):
                vae.wrap.output = replaced(vae.wrap.output, take, torch.zeros(2, 4))
                first = vae.output.save()
            with tracer.invoke(b):
                second = vae.output.save()
        with vae.trace(a):
            vae.wrap.output = replaced(vae.wrap.output, take, torch.zeros(2, 4))
            alone = vae.output.save()
    torch.testing.assert_close(first, alone)
    torch.testing.assert_close(second, clean_b)
    assert not torch.allclose(first, clean_a)


def test_skipped_containers_are_put_together(container):
    vae, take, a, b = container
    with torch.no_grad():
        with vae.trace() as tracer:
            with tracer.invoke(a):
                vae.wrap.skip(replaced(vae.wrap.make(vae.body.output, torch.zeros(())), take, torch.ones(2, 4)))
                first = vae.output.save()
            with tracer.invoke(b):
                vae.wrap.skip(replaced(vae.wrap.make(vae.body.output, torch.zeros(())), take, torch.zeros(3, 4)))
                second = vae.output.save()
    assert first.shape == (2, 6)
    torch.testing.assert_close(second, second[:1].expand(3, 6))
    assert not torch.allclose(first[0], second[0])


# ---------------------------------------------------------------------- vector quantisation
class Flatten(nn.Module):
    def forward(self, h):
        return h.permute(0, 2, 3, 1).reshape(-1, h.shape[1])


class Nearest(nn.Module):
    def forward(self, flat, table):
        return torch.cdist(flat, table).argmin(1)


class Table(nn.Module):
    """Returns the codebook, or a view of it: no rows of the batch, whatever its length."""

    def __init__(self, codes, transpose):
        super().__init__()
        self.weight, self.transpose = nn.Parameter(torch.randn(codes, 4)), transpose
        self.register_buffer("used", torch.zeros(codes))

    def forward(self):
        return self.weight.t() if self.transpose else self.weight


class VQ(nn.Module):
    image = (1, 8, 8)

    def __init__(self, codes=4, transpose=False):
        super().__init__()
        self.stem, self.flatten, self.table = nn.Conv2d(1, 4, 4, 2, 1), Flatten(), Table(codes, transpose)
        self.nearest, self.out = Nearest(), nn.ConvTranspose2d(4, 1, 4, 2, 1)

    def encode(self, x):
        flat = self.flatten(self.stem(x))
        table = self.table()
        table = table.t() if self.table.transpose else table
        codes = self.nearest(flat, table)
        z = table[codes].unflatten(0, (len(x), 4, 4)).permute(0, 3, 1, 2)
        return z, torch.zeros_like(z)

    def decode(self, z):
        return self.out(z)


@pytest.mark.parametrize("transpose", [False, True])
def test_token_rows_are_scoped_and_the_codebook_is_not(transpose):
    """4 rows in all, and 4 codes: the codebook's length equals the batch."""
    model = seeded(VQ(transpose=transpose))
    vae, a, b = nv.VAE(model), images(model, 2, seed=1), images(model, 2, seed=2)
    with torch.no_grad():
        with vae.trace() as tracer:
            with tracer.invoke(a):
                flat, table = vae.flatten.output.save(), vae.table.output.save()
                codes, first = vae.nearest.output.save(), vae.output.save()
            with tracer.invoke(b):
                vae.nearest.output = torch.zeros(32, dtype=torch.long)
                second = vae.output.save()
    assert flat.shape == (32, 4)
    assert codes.shape == (32,)
    assert table.shape == (4, 4)
    torch.testing.assert_close(first, vae(a))
    torch.testing.assert_close(second[0], second[1])


def test_a_learned_row_expanded_over_the_batch_is_rows_of_the_batch():
    class Expanded(Container):
        def __init__(self):
            super().__init__(lambda v, loss: v, lambda v: v)
            self.prior = nn.Parameter(torch.randn(1, 4))

        def encode(self, x):
            return self.head(self.body(x) + self.wrap(self.prior.expand(len(x), -1))).chunk(2, 1)

    model = seeded(Expanded())
    model.wrap.make = lambda v, loss: model.prior.expand(len(v), -1)
    vae = nv.VAE(model)
    with torch.no_grad(), vae.trace() as tracer:
        with tracer.invoke(images(model, 2)):
            first = vae.wrap.output.save()
        with tracer.invoke(images(model, 3)):
            vae.wrap.output = torch.zeros(3, 4)
    assert first.shape == (2, 4)
