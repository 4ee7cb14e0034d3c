"""Shapley values of cooperative games: exact over all coalitions, or estimated from sampled orders; tensors in and out.

A *game* takes coalitions, one row of booleans each (which players take part), and returns their worth: one tensor of
`cells` per coalition, each cell a game of its own. Everything is summed in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import comb

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Game = Callable[[Bool[Tensor, "coalition player"]], Float[Tensor, "coalition *cells"]]


def exact_shapley(game: Game, n_players: int, block: int = 4096) -> Float[Tensor, "player *cells"]:
    """Shapley values from all 2^K coalitions.

    phi_i = sum over S without i of |S|! (K - |S| - 1)! / K! * (v(S + i) - v(S)), written as one sum over coalitions:
    v(S) enters phi_i with weight +w(|S| - 1) where i is in S and -w(|S|) where it is not, w(s) = s! (K - s - 1)! / K!.

    Args:
        game: worth of coalitions.
        n_players: K.
        block: coalitions asked for at a time.

    Returns: one value per player and cell, in float64; they add up to v(all) - v(none).

    Source: Shapley 1953, A value for n-person games, eq. 13.

    Example:
        >>> glove = lambda members: (members[:, 0] & members[:, 1:].any(1)).double()  # a left glove needs a right one
        >>> exact_shapley(glove, 3)
        tensor([0.6667, 0.1667, 0.1667], dtype=torch.float64)
    """
    nobody = game(coalitions(n_players, 0, 1)).double()
    values = nobody.new_zeros(n_players, *nobody.shape[1:])
    for start in range(0, 2**n_players, block):
        members = coalitions(n_players, start, min(start + block, 2**n_players))
        # Less v(none): the weights of a player add up to 0, and worths that all but cancel lose no digits.
        gain = game(members).double() - nobody
        values += torch.tensordot(_weights(members).to(gain), gain, dims=1)
    return values


def sampled_shapley(
    game: Game, n_players: int, n_permutations: int, seed: int
) -> tuple[Float[Tensor, "player *cells"], Float[Tensor, "player *cells"]]:
    """Shapley values as mean marginal contributions over random orders of the players, each order with its reverse.

    Every order's contributions add up to v(all) - v(none), and so do the estimates. An order and its reverse together are
    exact for games without interactions of three or more players; the spread between such pairs gives the standard error.

    Args:
        game: worth of coalitions.
        n_players: K.
        n_permutations: orders, an even number of at least 4; K - 1 coalitions each.
        seed: of the drawing.

    Returns: the estimates and their standard errors, in float64.

    Source: Castro, Gomez and Tejada 2009, Computers & Operations Research 36(5); reversed orders: Mitchell, Cooper, Frank
        and Holmes 2022, JMLR 23(43), section 4.1.

    Example:
        >>> glove = lambda members: (members[:, 0] & members[:, 1:].any(1)).double()
        >>> values, errors = sampled_shapley(glove, 3, n_permutations=400, seed=0)
        >>> bool(((values - torch.tensor([2 / 3, 1 / 6, 1 / 6])).abs() < 4 * errors).all())
        True
    """
    ends = game(torch.tensor([[False] * n_players, [True] * n_players])).double()
    mean, squares = (ends.new_zeros(n_players, *ends.shape[1:]) for _ in range(2))
    n_pairs = n_permutations // 2
    for done, order in enumerate(_orders(n_players, n_pairs, seed), start=1):
        estimate = _contributions(game, torch.stack([order, order.flip(0)]), ends).mean(0)
        change = estimate - mean  # Welford's update: no difference of large sums
        mean += change / done
        squares += change * (estimate - mean)
    return mean, (squares / (n_pairs - 1) / n_pairs).sqrt()


def coalitions(n_players: int, start: int, stop: int) -> Bool[Tensor, "coalition player"]:
    """Coalitions number `start` to `stop` of the 2^K: player i takes part where bit i of the number is set.

    Example:
        >>> coalitions(2, 0, 4).int().tolist()
        [[0, 0], [1, 0], [0, 1], [1, 1]]
    """
    numbers = torch.arange(start, stop)
    return (numbers[:, None] >> torch.arange(n_players)) % 2 == 1


def _weights(members: Bool[Tensor, "coalition player"]) -> Float[Tensor, "player coalition"]:
    n_players = members.shape[1]
    joining = torch.tensor([1 / (n_players * comb(n_players - 1, s)) for s in range(n_players)], dtype=torch.float64)
    size = members.sum(1)
    inside, outside = joining[(size - 1).clamp(min=0)], -joining[size.clamp(max=n_players - 1)]
    return torch.where(members, inside[:, None], outside[:, None]).T


def _orders(n_players: int, n: int, seed: int) -> Iterator[Int[Tensor, " player"]]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n):
        yield torch.randperm(n_players, generator=generator)


def _contributions(
    game: Game, orders: Int[Tensor, "order player"], ends: Float[Tensor, "2 *cells"]
) -> Float[Tensor, "order player *cells"]:
    """What each player adds on joining, when the players join in these orders; all orders are asked for together."""
    n_orders, n_players = orders.shape
    places = torch.argsort(orders, dim=1)
    joined = places[:, None] < torch.arange(1, n_players)[:, None]  # after the first, the second, ... all but the last
    worth = game(joined.flatten(0, 1)).double().unflatten(0, (n_orders, n_players - 1))
    path = torch.cat([ends[:1].expand(n_orders, *ends[:1].shape), worth, ends[1:].expand(n_orders, *ends[1:].shape)], 1)
    added = path.diff(dim=1)
    return torch.stack([each[place] for each, place in zip(added, places, strict=True)])
