"""Vector quantisation: the nearest code, its straight-through gradient, and a codebook that follows the encoder by moving averages."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

DECAY = 0.99
DEAD = 0.1  # share of an even usage, the vectors of a minibatch over the codes, below which a code is dead


class VectorQuantizer(nn.Module):
    """Replace the vector at each position by the nearest row of a codebook: ``q = e_k, k = argmin_j ||h - e_j||``.

    Backwards, q counts as h (straight-through): the gradient with respect to q goes to h unchanged, none goes to the
    codebook. Training moves the codebook by `update` instead, so it is a buffer.

    Args:
        codes: number of codes, K.
        channels: length of a code.

    Source: van den Oord et al. 2017 (arXiv 1711.00937), eqs. 1-2; section 3.2 for the gradient.

    Example:
        >>> quantizer = VectorQuantizer(codes=2, channels=1)
        >>> quantizer.codebook.copy_(torch.tensor([[0.0], [1.0]])).shape
        torch.Size([2, 1])
        >>> quantizer(torch.tensor([[[0.2, 0.9]]]))
        tensor([[[0., 1.]]])
    """

    codebook: Float[Tensor, "code channel"]
    usage: Float[Tensor, " code"]
    sums: Float[Tensor, "code channel"]

    def __init__(self, codes: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("codebook", torch.zeros(codes, channels))
        self.register_buffer("usage", torch.zeros(codes))
        self.register_buffer("sums", torch.zeros(codes, channels))

    def forward(self, h: Tensor) -> Tensor:
        """Codes `[n, channels, ...]` in the place of encodings `[n, channels, ...]`."""
        q = self.codebook.detach()[nearest_code(h, self.codebook)].movedim(-1, 1)
        return q + (h - h.detach())  # plus exactly 0, which carries the gradient: h + (q - h) would round

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draw the codes from U(-1/K, 1/K), all of them dead: the first `update` puts them where the encodings are."""
        self.codebook.uniform_(-1 / len(self.codebook), 1 / len(self.codebook), generator=generator)
        self.usage.zero_()
        self.sums.zero_()

    @torch.no_grad()
    def update(self, h: Float[Tensor, "n channel *position"], generator: torch.Generator) -> Float[Tensor, ""]:
        """Move the codes towards the encodings of a minibatch: one step of `moving_codes`, then dead codes start again.

        A code whose usage falls below `DEAD` of an even one becomes a random encoding of this minibatch, with just that
        usage: it starts again after the next step too if it is not used then, so that codes keep up with encodings that
        are still on the move.

        Args:
            h: encodings, with the codes of which this minibatch was decoded still in place.
            generator: picks the encodings; on the CPU, and advanced only if a code is dead.

        Returns: perplexity of the codes in this minibatch, see `perplexity`.

        Source: moving averages: van den Oord et al. 2017, appendix A.1; random restarts of dead codes: Dhariwal et al. 2020
        (arXiv 2005.00341), section 3.1.
        """
        vectors = h.movedim(1, -1).flatten(0, -2)
        nearest = nearest_code(h, self.codebook).flatten()
        usage, sums = moving_codes(vectors, nearest, self.usage, self.sums)
        least = DEAD * len(vectors) / len(usage)
        dead = (usage < least).nonzero().flatten()
        drawn = torch.randint(len(vectors), (len(dead),), generator=generator).to(vectors.device)
        usage[dead], sums[dead] = least, least * vectors[drawn]
        # In place: whoever holds the codebook (an adapter, a trace) goes on holding the current one.
        self.usage.copy_(usage)
        self.sums.copy_(sums)
        self.codebook.copy_(sums / usage[:, None])
        return perplexity(F.one_hot(nearest, len(usage)).sum(0))


def nearest_code(
    h: Float[Tensor, "n channel *position"], codebook: Float[Tensor, "code channel"]
) -> Int[Tensor, "n *position"]:
    """Index of the nearest code at each position: ``argmin_j ||h - e_j||``, computed from differences.

    Source: van den Oord et al. 2017 (arXiv 1711.00937), eq. 1.

    Example:
        >>> nearest_code(torch.tensor([[[0.2, 0.9]]]), torch.tensor([[0.0], [1.0]]))
        tensor([[0, 1]])
    """
    vectors = h.movedim(1, -1)
    # Not through matrix products: far from the origin their rounding exceeds the distance between codes.
    distances = torch.cdist(vectors.flatten(0, -2), codebook, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.argmin(1).view(vectors.shape[:-1])


def moving_codes(
    vectors: Float[Tensor, "m channel"],
    nearest: Int[Tensor, " m"],
    usage: Float[Tensor, " code"],
    sums: Float[Tensor, "code channel"],
    decay: float = DECAY,
) -> tuple[Float[Tensor, " code"], Float[Tensor, "code channel"]]:
    """One step of the moving averages whose ratio is the codebook, ``e_k = m_k / N_k``.

    ``N_k <- decay N_k + (1 - decay) n_k``, ``m_k <- decay m_k + (1 - decay) sum of the n_k vectors nearest to code k``

    Args:
        vectors: encodings of a minibatch, one per image and position.
        nearest: the code nearest to each.
        usage: N, vectors a minibatch.
        sums: m.
        decay: gamma in the paper.

    Source: van den Oord et al. 2017 (arXiv 1711.00937), appendix A.1, eqs. 6-8.

    Example:
        >>> usage, sums = moving_codes(torch.tensor([[2.0]]), torch.tensor([0]), torch.ones(1), torch.ones(1, 1), decay=0.5)
        >>> float(usage), float(sums)
        (1.0, 1.5)
    """
    # A product and no scatter, which on a GPU adds in any order: the same seed is to give the same bits.
    of_code = F.one_hot(nearest, len(usage)).to(vectors)
    counts, totals = of_code.sum(0), of_code.T @ vectors
    return decay * usage + (1 - decay) * counts, decay * sums + (1 - decay) * totals


def commitment_loss(
    h: Float[Tensor, "n channel *position"], q: Float[Tensor, "n channel *position"]
) -> Float[Tensor, ""]:
    """How far encodings are from their codes: ``E_n sum ||h - sg[q]||^2``, over positions and channels; no gradient to q.

    Source: van den Oord et al. 2017 (arXiv 1711.00937), eq. 3, third term without its weight.

    Example:
        >>> float(commitment_loss(torch.zeros(5, 2, 3), torch.ones(5, 2, 3)))
        6.0
    """
    return (h - q.detach()).square().flatten(1).sum(1).mean()


def perplexity(counts: Int[Tensor, " code"]) -> Float[Tensor, ""]:
    """How many codes are in use, effectively: ``exp(-sum_k p_k log p_k)`` with ``p = counts / sum``; 1 to K.

    Example:
        >>> float(perplexity(torch.tensor([3, 3, 0])))
        2.0
    """
    share = counts / counts.sum()
    return torch.exp(-torch.special.xlogy(share, share).sum())
