"""Sites and units: the names a VAE gives its tensors, the keys that select them, and why a module may be no site."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn
from vaes import ConvVAE, ResidualVAE, images, seeded

import nnsight_vae as nv
from nnsight_vae.layout import site_name
from nnsight_vae.sites import Sites

SITES = Sites(
    [
        nv.Site("encoder.4", "conv", "encoder", 12, (12, 4, 4)),
        nv.Site("latent.z", "latent", "latent", 5, (5,)),
        nv.Site("tokens", "linear", "decoder", 7, (9, 7), axis=2),
    ],
    {"encoder.5": "it fires 2 times per forward"},
)
names = st.sampled_from(list(SITES))


@st.composite
def selections(draw):
    name = draw(names)
    indices = draw(st.sets(st.integers(0, SITES[name].n_units - 1), min_size=1))
    position = draw(st.sampled_from([None, *filter(None, SITES[name].positions)]))
    return nv.Selection(name, draw(st.sampled_from([None, tuple(sorted(indices))])), position)


# ---------------------------------------------------------------------- keys
@given(selections())
def test_a_selection_survives_its_own_text(selection):
    assert SITES.select(str(selection)) == selection
    assert SITES.select(selection) == selection
    assert SITES.select(f"  {selection} ") == selection


@given(names, st.data())
def test_units_are_selected_by_any_spelling(name, data):
    n = SITES[name].n_units
    index = data.draw(st.integers(0, n - 1))
    unit = SITES[name].units[index]
    spellings = [
        unit,
        str(unit),
        f"{name}[{index - n}]",
        f"{name}[{index}:{index + 1}]",
        nv.Selection(name, (index - n,)),
    ]
    assert {SITES.select(key) for key in spellings} == {nv.Selection(name, (index,))}


@given(
    names,
    st.one_of(st.none(), st.integers(-20, 20)),
    st.one_of(st.none(), st.integers(-20, 20)),
    st.one_of(st.none(), st.integers(-4, 4).filter(bool)),
)
def test_slices_are_those_of_python(name, start, stop, step):
    text = ":".join("" if part is None else str(part) for part in (start, stop))
    text += "" if step is None else f":{step}"
    want = tuple(sorted(range(SITES[name].n_units)[start:stop:step]))
    if want:
        assert SITES.select(f"{name}[{text}]") == nv.Selection(name, want)
    else:
        with pytest.raises(nv.SiteError, match="names no unit"):
            SITES.select(f"{name}[{text}]")


def test_a_site_selects_itself_whole():
    assert SITES.select(SITES["latent.z"]) == SITES.select("latent.z") == nv.Selection("latent.z")
    assert SITES.select("latent.z[3, 1,1]") == nv.Selection("latent.z", (1, 3))
    assert str(nv.Selection("latent.z", (2,))) == "latent.z[2]"
    assert str(nv.Selection("latent.z", (2, 3))) == "latent.z[2:4]"
    assert str(nv.Selection("latent.z", (1, 3))) == "latent.z[1,3]"
    assert str(nv.Unit("encoder.4", 7)) == "encoder.4[7]"


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("encoder.9", r"'encoder\.9' is not a site of this VAE\. Sites: encoder\.4, latent\.z, tokens\."),
        ("encoder.9[3]", r"'encoder\.9\[3\]' is not a site"),
        ("encoder.5[0]", r"not a site of this VAE: it fires 2 times per forward\."),
        ("latent.z[5]", r"'latent\.z' exists with 5 units \(0-4\)"),
        ("latent.z[-6]", "exists with 5 units"),
        ("latent.z[3:3]", "names no unit"),
        ("latent.z[::0]", "step of 0"),
        ("latent.z[1.5]", "cannot read the index"),
        ("latent.z[a]", "cannot read the index"),
        ("latent.z[]", "cannot read the index"),
        (nv.Unit("latent.z", 0.5), "0.5 where an integer belongs"),
        ("encoder.4@4,0", r"'encoder\.4@4,0' names no position .* go from @0,0 to @3,3\."),
        ("encoder.4[1]@0,-5", "names no position"),
        ("encoder.4@1", r"gives 1 coordinates, but 'encoder\.4' has positions over axes of length \(4, 4\)"),
        ("encoder.4@1,2,3", "gives 3 coordinates"),
        ("tokens@1,2", r"axes of length \(9,\)"),
        ("tokens@9", "go from @0 to @8"),
        ("latent.z@0", "has no positions, its units are single numbers"),
        ("encoder.4@", "cannot read the position"),
        ("encoder.4@1.5,2", "cannot read the position"),
        ("encoder.4@0:2,1", "cannot read the position"),
        ("encoder.4@1,2[3]", "is not a site"),
        (nv.Selection("encoder.4", None, (0, "1")), "'1' where an integer belongs"),
        (nv.Selection("encoder.4", None, (0,)), "gives 1 coordinates"),
        (nv.Selection("encoder.4", (12,), (0, 0)), "exists with 12 units"),
        ("latent.z[1][2]", "cannot read the key"),
        ("latent.z[", "cannot read the key"),
        ("", "cannot read the key"),
        (7, "cannot read the key 7"),
        (nv.Unit("latent.z", 9), "exists with 5 units"),
        (nv.Unit("nowhere", 0), "not a site"),
        (nv.Selection("nowhere"), "not a site"),
        (nv.Selection("latent.z", ()), "names no unit"),
        (nv.Site("nowhere", "conv", "encoder", 1, (1,)), "not a site"),
    ],
)
def test_keys_that_name_nothing_say_what_there_is(key, message):
    with pytest.raises(nv.SiteError, match=message):
        SITES.select(key)


@given(names, st.data())
def test_a_position_is_selected_by_any_spelling(name, data):
    site = SITES[name]
    position = data.draw(st.sampled_from(site.positions))
    wrapped = tuple(i - length for i, length in zip(position, site.grid, strict=True))
    wanted = nv.Selection(name, (1, 2), position or None)
    assert SITES.select(nv.Selection(name, (2, 1), wrapped)) == wanted
    for at in (position, wrapped) if position else ():
        assert SITES.select(f"{name}[1:3]@{', '.join(map(str, at))}") == wanted
        assert SITES.select(f"{name}@{','.join(map(str, at))}") == nv.Selection(name, None, position)


def test_positions_are_over_the_axes_that_are_not_the_channels():
    assert SITES["encoder.4"].positions[:5] == ((0, 0), (0, 1), (0, 2), (0, 3), (1, 0))
    assert SITES["encoder.4"].positions[-1] == (3, 3)
    assert SITES["tokens"].positions == tuple((i,) for i in range(9))
    assert SITES["latent.z"].positions == ((),)
    assert str(nv.Selection("encoder.4", (7,), (2, 3))) == "encoder.4[7]@2,3"
    assert str(nv.Selection("latent.z", None, (2, 3))) == "latent.z@2,3"
    assert SITES.units(SITES.select("encoder.4[0:2]@1,1")) == SITES["encoder.4"].units[:2]


@given(st.lists(selections(), min_size=1, max_size=3))
def test_selections_are_disjoint_where_no_number_is_in_two_of_them(found):
    def numbers(selection):
        positions = SITES[selection.site].positions if selection.position is None else (selection.position,)
        return [(unit, position) for unit in SITES.units(selection) for position in positions]

    everything = [number for selection in found for number in numbers(selection)]
    if len(set(everything)) == len(everything):
        SITES.require_disjoint(found)
    else:
        with pytest.raises(nv.InterventionError, match="both name"):
            SITES.require_disjoint(found)


def test_a_module_with_an_at_in_its_name_is_a_site_like_any_other():
    sites = Sites([nv.Site("norm@1", "norm", "encoder", 3, (3, 2)), nv.Site("norm", "norm", "encoder", 3, (3, 2))])
    assert sites.select("norm@1") == nv.Selection("norm@1")
    assert sites.select("norm@1[2]@0") == nv.Selection("norm@1", (2,), (0,))
    assert sites.select("norm@0") == nv.Selection("norm", None, (0,))


def test_sites_are_a_mapping_in_order():
    assert list(SITES) == ["encoder.4", "latent.z", "tokens"]
    assert [SITES.order(name) for name in SITES] == [0, 1, 2]
    assert "encoder.4" in SITES
    assert "encoder.5" not in SITES
    assert SITES.get("encoder.5") is None
    assert len(SITES) == 3
    assert "tokens     decoder  linear" in repr(SITES)


# ---------------------------------------------------------------------- names
@given(
    st.lists(
        st.lists(st.sampled_from(["input", "output", "latent", "model", "z", "tap_input"]), min_size=1), unique_by=tuple
    )
)
def test_no_two_modules_share_a_site_name(paths):
    ours = ["tap_input", "tap_output", "latent", "latent.z"]
    theirs = [".".join(["model", *path]) for path in paths]
    assert len({site_name(path) for path in [*ours, *theirs]}) == len(ours) + len(theirs)


AWKWARD = ["path", "skip", "trace", "input", "output", "latent", "encode", "scan", "model", "sites", "interleaver", "adapter"]  # fmt: skip


class Awkward(nn.Module):
    """Every submodule has a name that nnsight or the wrapper uses itself, at the top and one level down."""

    image = (4,)

    def __init__(self):
        super().__init__()
        for name in AWKWARD:
            block = nn.Module()
            block.forward = lambda x, block=block: self.inner(block, x)
            for inner in AWKWARD:
                block.add_module(inner, nn.Linear(4, 4))
            self.add_module(name, block)
        self.heads, self.out = nn.Linear(4, 4), nn.Linear(2, 4)

    @staticmethod
    def inner(block, x):
        for name in AWKWARD:
            x = x + 0.1 * block.get_submodule(name)(x)
        return x

    def read(self, x):
        for name in AWKWARD:
            x = self.get_submodule(name)(x)
        return self.heads(x).chunk(2, 1)


def test_awkward_names_are_sites_that_can_be_read_and_written():
    model = seeded(Awkward())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nnsight says where it moves modules called input and output
        vae = nv.adapt(model, encoder=model.read, decoder=model.out)
    x = images(model, 2)
    assert isinstance(vae.path, str)
    prefixed = {"input", "output", "latent"}
    with torch.no_grad():
        clean = vae(x)
        for outer in AWKWARD:
            top = f"model.{outer}" if outer in prefixed else outer
            for inner in AWKWARD:
                path = f"model.{outer}.{inner}"
                site = site_name(path)
                assert vae.layout().paths[site] == path
                kept = []
                with vae.trace(x):
                    kept.append(vae.envoy(site).output)
                    vae.envoy(site).output = torch.zeros(2, 4)
                    out = vae.output.save()
                assert kept[0].abs().sum() > 0
                assert not torch.equal(out, clean)
            assert top in vae.sites
    assert vae.sites["input"].stage == "input"
    assert vae.sites["model.input"].stage == "encoder"


# ---------------------------------------------------------------------- what is a site, and what is not
class Reusing(nn.Module):
    image = (4,)

    def __init__(self):
        super().__init__()
        self.body, self.act, self.both, self.idle = nn.Linear(4, 4), nn.Tanh(), nn.Identity(), nn.Linear(4, 4)
        self.heads, self.out = nn.Linear(4, 4), nn.Linear(2, 4)

    def encode(self, x):
        h = self.act(self.body(self.act(x)))
        h, _ = self.both((h, h))
        return self.heads(h).chunk(2, 1)

    def decode(self, z):
        return self.out(z)


def test_a_module_that_is_no_site_says_why():
    vae = nv.VAE(seeded(Reusing()))
    assert list(vae.sites)[:3] == ["input", "body", "heads"]
    for name, why in (
        ("act", "fires 2 times per forward"),
        ("act[0]", "fires 2 times per forward"),
        ("both", "returns tuple"),
        ("idle", "does not run when this VAE encodes and decodes"),
    ):
        with pytest.raises(nv.SiteError, match=why):
            vae.sites.select(name)
        with pytest.raises(nv.SiteError, match=why):
            nv.intervene(vae, torch.zeros(2, 4), {name: nv.Zero()})
    with pytest.raises(nv.SiteError, match="fires 2 times"):
        vae.envoy("act")


def test_sites_are_in_execution_order_with_their_stage_and_units():
    sites = nv.VAE(seeded(ResidualVAE()), example=torch.zeros(1, 1, 8, 8)).sites
    assert [s.stage for s in sites.values()] == sorted(
        [s.stage for s in sites.values()], key=["input", "encoder", "latent", "decoder", "output"].index
    )
    assert list(sites)[:6] == ["input", "stem", "block.first", "block.act", "block.second", "block"]
    assert sites["latent.z"] == nv.Site("latent.z", "latent", "latent", 2, (2, 4, 4))
    assert sites["block"].kind == "container"
    assert sites["output"].shape == (1, 8, 8)
    assert {name: site.n_units for name, site in sites.items() if site.kind == "conv"}["head"] == 4


def test_layouts_follow_the_input_shape():
    vae = nv.VAE(seeded(ResidualVAE()))
    small, large = torch.zeros(2, 1, 8, 8), torch.zeros(1, 1, 16, 16)
    assert vae.layout(small).sites["latent.z"].shape == (2, 4, 4)
    assert vae.layout(large).sites["latent.z"].shape == (2, 8, 8)
    assert vae.sites["latent.z"].shape == (2, 8, 8)
    assert vae.decode(torch.zeros(1, 2, 4, 4)).shape == (1, 1, 8, 8)


def test_linear_outputs_with_extra_axes_have_their_units_last():
    class Tokens(nn.Module):
        image = (6, 4)

        def __init__(self):
            super().__init__()
            self.embed, self.heads, self.out = nn.Linear(4, 3), nn.Linear(18, 4), nn.Linear(2, 24)

        def encode(self, x):
            return self.heads(self.embed(x).flatten(1)).chunk(2, 1)

        def decode(self, z):
            return self.out(z).unflatten(1, (6, 4))

    model = seeded(Tokens())
    site = nv.VAE(model, example=images(model, 2)).sites["embed"]
    assert (site.axis, site.n_units, site.shape) == (2, 3, (6, 3))


def test_the_envoy_of_a_site_serves_it():
    model = seeded(ConvVAE())
    vae, x = nv.VAE(model), images(model, 2)
    with vae.trace(x):
        by_site = vae.envoy("encoder.4").output.save()
    with vae.trace(x):
        by_path = vae.encoder[4].output.save()
    assert torch.equal(by_site, by_path)
