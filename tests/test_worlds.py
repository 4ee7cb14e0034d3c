"""Procedural worlds: images show the factors, factors follow their equations, and any causal model meets any renderer."""

from __future__ import annotations

import colorsys

import networkx as nx
import numpy as np
import pytest
import torch

from nnsight_vae import datasets
from nnsight_vae._regressor import r_squared
from nnsight_vae.causal import SCM, Mechanism
from nnsight_vae.datasets import FLOW, LINEAR_SPRITES, SPRITES, Procedural, linear_sprites
from nnsight_vae.datasets.linear import FACTORS, NOISE, WEIGHTS
from nnsight_vae.errors import DataError


@pytest.fixture(scope="module")
def sprites():
    return datasets.load("independent_sprites")


@pytest.fixture(scope="module")
def flow():
    return datasets.load("flow")


@pytest.fixture(scope="module")
def room():
    return datasets.load("room")


@pytest.fixture(scope="module")
def linear():
    return datasets.load("linear_sprites")


def pixels(low, high, fine=1):
    rising = low + (np.arange(64 * fine) + 0.5) * (high - low) / 64 / fine
    return rising, rising[::-1, None]


def centre(mass, x, y):
    total = mass.sum((1, 2))
    return (mass * x).sum((1, 2)) / total, (mass * y).sum((1, 2)) / total


def averaged(image, fine):
    """A finely drawn image `[c, 64 fine, 64 fine]` at 64 x 64."""
    return image.reshape(len(image), 64, fine, 64, fine).mean((2, 4))


# ------------------------------------------------------------------ sprites
def test_sprites_take_the_values_of_dsprites_independently(sprites):
    factors = sprites.sample(4000, seed=0).factors
    assert [len(column.unique()) for column in factors.T] == [3, 6, 40, 32, 32]
    assert float((torch.corrcoef(factors.T) - torch.eye(5)).abs().max()) < 0.06
    assert factors[:, 1].min() == 0.5
    assert factors[:, 1].max() == 1
    assert factors[:, 2].max() == pytest.approx(2 * np.pi * 39 / 40)


def test_moments_of_a_sprite_give_its_place_and_size(sprites):
    batch = sprites.sample(600, seed=1)
    image = batch.images[:, 0].double().numpy()
    x, y = pixels(0, 64)
    cx, cy = centre(image, x, y)
    shape, scale, _, place_x, place_y = batch.factors.double().numpy().T
    even = shape < 2  # the middle of a heart is not its centre of mass
    assert np.abs(cx - (16 + 32 * place_x))[even].max() < 0.1
    assert np.abs(cy - (16 + 32 * place_y))[even].max() < 0.1
    area = image.sum((1, 2))
    assert np.abs(area / (21 * scale) ** 2 - 1)[shape == 0].max() < 0.02
    assert np.abs(area / (np.pi * 14 * 7 * scale**2) - 1)[shape == 1].max() < 0.03


def test_the_long_axis_of_an_ellipse_has_its_orientation(sprites):
    batch = sprites.do(200, seed=2, shape=1, scale=1.0)
    image = batch.images[:, 0].double().numpy()
    x, y = pixels(0, 64)
    cx, cy = centre(image, x, y)
    dx, dy = x - cx[:, None, None], y - cy[:, None, None]
    xx, yy, xy = ((image * m).sum((1, 2)) for m in (dx * dx, dy * dy, dx * dy))
    axis = np.arctan2(2 * xy, xx - yy) / 2
    error = (axis - batch.factors[:, 2].numpy() + np.pi / 2) % np.pi - np.pi / 2
    assert np.abs(error).max() < 0.02


@pytest.mark.parametrize("shape", [0, 1, 2])
def test_a_sprite_is_the_anti_aliased_shape(sprites, shape):
    factors = sprites.do(3, seed=3 + shape, shape=shape).factors.double().numpy()
    fine = 16
    for row, image in zip(factors, sprites.render(factors)[:, 0] / 255, strict=True):
        _, scale, turn, px, py = row
        x, y = pixels(0, 64, fine)
        x, y = x - 16 - 32 * px, y - 16 - 32 * py
        u, v = (x * np.cos(turn) + y * np.sin(turn)) / scale, (y * np.cos(turn) - x * np.sin(turn)) / scale
        heart = np.abs(u) / 19, v / 19 + 0.55  # a square on its corner and two half discs on its upper sides
        square = np.abs(heart[1] - 0.5) + heart[0] < 0.5
        within = [
            np.maximum(np.abs(u), np.abs(v)) < 10.5,
            (u / 14) ** 2 + (v / 7) ** 2 < 1,
            square | (np.hypot(heart[0] - 0.25, heart[1] - 0.75) < np.sqrt(2) / 4),
        ][shape]
        error = np.abs(image - averaged(within[None].astype(float), fine)[0])
        assert error.max() < 0.25  # a right corner covers a quarter of its pixel, a straight edge half
        assert error.mean() < 1e-3


def test_a_sprite_stays_in_the_image_wherever_it_is(sprites):
    corners = np.array(
        [[s, 1, t, x, y] for s in range(3) for t in np.linspace(0, 6.2, 9) for x in (0, 1) for y in (0, 1)]
    )
    images = sprites.render(corners)[:, 0]
    assert images[:, [0, -1]].max() == 0
    assert images[:, :, [0, -1]].max() == 0


@pytest.mark.parametrize(
    ("values", "message"), [({"shape": 0.5}, "whole numbers only"), ({"shape": 3}, r"numbers in \[0, 2\]")]
)
def test_a_shape_between_shapes_is_refused(sprites, values, message):
    with pytest.raises(DataError, match=message):
        sprites.do(2, **values)


# ------------------------------------------------------------------ flow
def test_flow_follows_its_equations_and_the_ball_acts_through_the_water_only(flow):
    batch = flow.sample(300, seed=0)
    r, h, d, x = batch.factors.double().numpy().T
    u = batch.noise
    np.testing.assert_allclose(r, (5 + 29 * u[:, 0]) / 30, rtol=1e-6)
    np.testing.assert_allclose(h, r**3 + 1 + 2.9 * u[:, 1], rtol=1e-6)
    np.testing.assert_allclose(x, np.sqrt(1.96 * h * (d - 0.5)) * (0.98 + 0.04 * u[:, 3]), rtol=1e-5)
    held = flow.counterfactual(batch, ball_size=1.0, water_height=batch.factors[:, 1])
    assert torch.equal(held.factors[:, 3], batch.factors[:, 3])  # no direct effect, to the bit
    values = [
        flow.scm.sample(20_000, np.random.default_rng(1), do={"ball_size": v})[0][:, 3].mean() for v in (0.4, 1.0)
    ]
    assert values[1] - values[0] == pytest.approx(0.656, abs=0.01)  # computed elsewhere by Monte Carlo


@pytest.mark.parametrize("draw", ["sample", "sample_independent"])
def test_the_image_of_flow_shows_every_factor(flow, draw):
    batch = getattr(flow, draw)(300, seed=2)
    red, _, blue = batch.images.double().numpy().transpose(1, 0, 2, 3)
    x, y = pixels(1, 17)
    pixel = 16 / 64
    ball = np.clip(red - blue, 0, 1)
    ball_size = np.sqrt(ball.sum((1, 2)) * pixel**2 / np.pi)
    column = (x > 6.9) & (x < 7.7)
    height = (np.clip(1 - red, 0, 1) * column * (y > 1)).sum((1, 2))
    jet = np.clip(blue - red, 0, 1) * (x > 8.3) * (y > 0.6)
    start = jet * (x < 8.9)
    hole = (start * y).sum((1, 2)) / start.sum((1, 2))
    reach = np.array([x[np.flatnonzero(j.max(0) > 0.3).max()] for j in jet])
    # the jet is a parabola: where it meets y = .6 and where it starts give its length
    length = (reach - 8) / np.sqrt((hole - 0.6) / (hole - 0.5))
    for measured, column_of in ((ball_size, 0), (height, 1), (hole, 2), (length, 3)):
        score = np.corrcoef(measured, batch.factors[:, column_of].numpy())[0, 1]
        assert score > (0.99 if column_of == 3 else 0.995), (column_of, score)


# ------------------------------------------------------------------ linear sprites
def test_the_total_effect_of_every_factor_on_every_other_is_the_inverse(linear):
    scores = linear.scores(linear.sample(200, seed=0).factors.numpy())
    effects = linear.total_effects()
    batch = linear.sample(200, seed=0)
    for i, cause in enumerate(FACTORS):
        target = torch.full((200,), float(np.mean(linear.limits[cause])))  # a score of 0
        moved = linear.scores(linear.counterfactual(batch, **{cause: target}).factors.numpy())
        expected = scores - scores[:, [i]] * effects[i]
        np.testing.assert_allclose(moved, expected, atol=2e-3)


def test_scores_have_the_moments_of_the_linear_model(linear):
    values, _ = linear.scm.sample(40_000, np.random.default_rng(0))
    scores = linear.scores(values)
    through = linear.total_effects()
    covariance = through.T @ np.diag([NOISE[f] ** 2 for f in FACTORS]) @ through
    np.testing.assert_allclose(np.cov(scores.T), covariance, atol=0.03)
    np.testing.assert_allclose(scores.mean(0), 0, atol=0.03)
    low, high = np.array(list(linear.limits.values())).T
    share = (values - low) / (high - low)
    np.testing.assert_allclose(np.std(np.log(share / (1 - share)) / 1.2, axis=0), 1, atol=0.02)  # u in its own sd


def test_the_default_graph_has_no_automorphism_but_itself(linear):
    matcher = nx.algorithms.isomorphism.DiGraphMatcher(linear.graph, linear.graph)
    assert len(list(matcher.isomorphisms_iter())) == 1
    assert set(linear.graph.edges) == set(WEIGHTS)


def test_the_image_of_linear_sprites_shows_every_factor(linear):
    batch = linear.sample_independent(300, seed=3)
    image = batch.images.double().numpy()
    x, y = pixels(0, 64)
    backdrop = image[:, 0, 0, 0]
    chroma = (image.max(1) - image.min(1)) * (x < 35)
    size = np.sqrt(chroma.sum((1, 2)) / np.pi)
    _, height = centre(chroma, x, y)
    strongest = chroma.reshape(len(image), -1).argmax(1)
    red, green, blue = image.reshape(len(image), 3, -1)[np.arange(len(image)), :, strongest].T
    hue = np.array([colorsys.rgb_to_hsv(*colour)[0] for colour in zip(red, green, blue, strict=True)])
    white = np.clip(
        (image.min(1) - backdrop[:, None, None]) / (1 - backdrop)[:, None, None], 0, 1
    )  # the disc has no white in it
    satellite = np.sqrt(white.sum((1, 2)) / np.pi)
    _, white_y = centre(white, x, y)
    angle = np.arcsin(((white_y - 32) / 16).clip(-1, 1))
    measured = np.stack([backdrop, size, hue, height, satellite, angle], axis=1)
    scores = r_squared(torch.from_numpy(measured), batch.factors)
    assert scores[2] >= 0.99
    assert min(scores[:2] + scores[3:]) >= 0.995


def test_the_weights_can_be_any_dag_and_others_are_refused():
    data = linear_sprites({("hue", "size"): 2.0}, noise={"size": 0.1})
    assert set(data.graph.edges) == {("hue", "size")}
    assert data.total_effects()[2].tolist() == [0, 2, 1, 0, 0, 0]
    scores = data.scores(data.scm.sample(5000, np.random.default_rng(0))[0])
    assert np.std(scores[:, 1] - 2 * scores[:, 2]) == pytest.approx(0.1, rel=0.05)
    for weights, noise, message in (
        ({("hue", "size"): 1, ("size", "hue"): 1}, None, "cycle"),
        ({("hue", "colour"): 1}, None, r"unknown factors \['colour'\]"),
        ({("hue", "size"): np.nan}, None, "finite"),
        (None, {"hue": 0.0}, "positive"),
    ):
        with pytest.raises(DataError, match=message):
            linear_sprites(weights, noise)
    with pytest.raises(DataError, match="hidden"):
        linear_sprites(hidden=["colour"])


def test_a_hidden_factor_acts_and_does_not_show():
    data, shown = linear_sprites(hidden=["backdrop"]), linear_sprites()
    one, other = data.sample(50, seed=0), shown.sample(50, seed=0)
    assert torch.equal(one.factors, other.factors)
    assert bool((one.images[:, :, 0, 0] == one.images[0, 0, 0, 0]).all())
    held = {f: one.factors[:, j] for j, f in enumerate(data.factors) if f != "backdrop"}
    assert torch.equal(data.counterfactual(one, backdrop=0.2, **held).images, one.images)
    assert not torch.equal(data.counterfactual(one, backdrop=0.2).images, one.images)


# ------------------------------------------------------------------ room
def saturated_hue(pixels):
    """Hue of colours that are a grey and a pure colour mixed."""
    return np.array([colorsys.rgb_to_hsv(*colour)[0] for colour in pixels])


def test_room_follows_its_equations(room):
    batch = room.sample(400, seed=0)
    light, wall, floor, shape, scale, hue = batch.factors.double().numpy().T
    u = batch.noise
    np.testing.assert_allclose(light, 2 * u[:, 0] - 1, atol=1e-6)
    np.testing.assert_allclose(wall, 0.8 * u[:, 1], atol=1e-6)
    np.testing.assert_allclose(floor, 0.8 * ((wall / 0.8 + 0.35 + 0.2 * u[:, 2]) % 1), atol=1e-5)
    assert np.array_equal(shape, np.floor(3 * u[:, 3]))
    np.testing.assert_allclose(scale, 0.55 + 0.1 * shape + 0.25 * u[:, 4], atol=1e-6)
    np.testing.assert_allclose(hue, 0.8 * ((shape / 3 + 0.3 * u[:, 5]) % 1), atol=1e-5)


def test_the_image_of_the_room_shows_every_factor(room):
    batch = room.sample_independent(300, seed=1)
    light, wall, floor, shape, scale, hue = batch.factors.double().numpy().T
    image = batch.images.double().numpy()
    apart = lambda a, b: np.abs((a - b + 0.5) % 1 - 0.5).max()  # hues are turns
    assert apart(saturated_hue(image[:, :, 2, 2]), wall) < 0.01
    assert apart(saturated_hue(image[:, :, 62, 2]), floor) < 0.01
    assert apart(saturated_hue(image[:, :, 44, 32]), hue) < 0.01  # in the lower middle of every object
    x, _ = pixels(0, 64)
    plain = room.do(300, seed=1, light=0.0, wall_hue=0.1, floor_hue=0.1, shape=0)
    darker = {}
    for side in (-1, 1):
        lit = room.counterfactual(plain, light=float(side)).images.double().numpy()
        strip = np.clip(
            0.6 - lit[:, :, 46:50].max(1), 0, 1
        )  # of the floor at the foot of the object, where the shadow is
        darker[side] = float((strip.sum(1) * x).sum() / strip.sum())
    assert darker[1] < 27 < 37 < darker[-1]
    width = (np.abs(image - image[:, :, :, :1]).max(1)[:, 44] > 0.02).sum(1)
    for kind in range(3):
        assert np.corrcoef(width[shape == kind], scale[shape == kind])[0, 1] > 0.4
    assert len(light) == len(batch)


def test_object_and_shadow_of_the_room_lie_within_the_bounds_that_are_drawn(room, monkeypatch):
    lights, scales = room.limits["light"], room.limits["scale"]
    corners = np.array([[light, 0, 0.5, s, scale, 0.3] for light in lights for s in range(3) for scale in scales])
    bounded = room.render(corners).astype(int)
    for bound in ("_OBJECT_ROWS", "_OBJECT_COLUMNS"):
        monkeypatch.setattr(f"nnsight_vae.datasets.room.{bound}", slice(0, 64))
    assert np.abs(room.render(corners) - bounded).max() <= 1
    monkeypatch.setattr("nnsight_vae.datasets.room._SHADOW_ROWS", slice(38, 64))  # from the horizon down
    assert np.abs(room.render(corners) - bounded).max() <= 1


# ------------------------------------------------------------------ all of them
@pytest.mark.parametrize("name", ["independent_sprites", "flow", "linear_sprites", "room"])
def test_counterfactuals_without_change_return_the_batch_bit_for_bit(name):
    data = datasets.load(name)
    batch = data.sample(20, seed=4)
    for values in (
        {},
        {f: batch.factors[:, j] for j, f in enumerate(data.factors)},
        {data.factors[1]: batch.factors[:, 1]},
    ):
        again = data.counterfactual(batch, **values)
        assert torch.equal(again.images, batch.images)
        assert torch.equal(again.factors, batch.factors)


@pytest.mark.parametrize("name", ["independent_sprites", "flow", "linear_sprites", "room"])
def test_every_factor_shows_in_the_image_and_its_pairs_are_oriented(name):
    data = datasets.load(name)
    for column, factor in enumerate(data.factors):
        pairs = data.pairs(factor, 8, seed=0, propagate=False)
        assert bool((pairs.base_factors[:, column] < pairs.source_factors[:, column]).all())
        differs = (pairs.base != pairs.source).flatten(1).any(1)
        symmetric = factor == "orientation" and pairs.base_factors[:, 0] < 2  # a square after a quarter turn
        assert bool((differs | torch.as_tensor(symmetric)).all())


# ------------------------------------------------------------------ any causal model with any renderer
def noise(rng, n):
    return rng.random(n)


def chain(names):
    return SCM(
        {
            name: Mechanism(names[i - 1 : i] if i else (), lambda p, u: 0.3 + 0.4 * u + 0 * sum(p.values()), noise)
            for i, name in enumerate(names)
        }
    )


def test_variables_meet_the_renderer_by_name_whatever_their_order():
    still = {"shape": 1, "scale": 1.0, "orientation": 0.5}
    one = Procedural.drawn("one", chain(("x", "y")), SPRITES, still)
    two = Procedural.drawn("two", chain(("y", "hidden", "x")), SPRITES, still)
    values = np.array([[0.2, 0.9]])
    np.testing.assert_array_equal(one.render(values), two.render(np.array([[0.9, 7.0, 0.2]])))
    expected = SPRITES.draw(np.array([[1, 1.0, 0.5, 0.2, 0.9]]))
    np.testing.assert_array_equal(one.render(values), expected)
    assert two.factors == ("y", "hidden", "x")
    assert torch.equal(two.do(3, hidden=1e6).images, two.sample(3).images)


@pytest.mark.parametrize(
    ("names", "renderer", "fixed", "message"),
    [
        (("ball_size", "hole"), FLOW, {}, "water_height, flow is no variable"),
        (
            ("ball_size", "hole"),
            FLOW,
            {"water_height": 3.0, "flow": 99.0},
            r"cannot draw flow = 99.0; expected a number in \[0, 8.5\]",
        ),
        (("x", "y"), SPRITES, {"shape": 0.5, "scale": 1, "orientation": 0}, "expected a whole number"),
        (FACTORS, LINEAR_SPRITES, {"sizes": 3.0}, r"fixed=\['sizes'\]"),
    ],
)
def test_a_model_that_does_not_fit_the_renderer_is_refused(names, renderer, fixed, message):
    with pytest.raises(DataError, match=message):
        Procedural.drawn("mine", chain(names), renderer, fixed)
