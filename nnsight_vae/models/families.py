"""The families of VAEs by what they are trained on: six objectives in the convention of `objectives`, nats per image.

| name | loss | Source |
|---|---|---|
| vae | ``rec + KL`` | Kingma and Welling 2014 |
| beta-vae | ``rec + beta KL`` | Higgins et al. 2017 |
| factor-vae | ``rec + KL + gamma TC``, TC by a discriminator | Kim and Mnih 2018 |
| beta-tc-vae | ``rec + KL + (beta - 1) TC``, TC by minibatch-weighted sampling | Chen et al. 2018 |
| dip-vae-ii | ``rec + KL + lambda_od off-diagonal + lambda_d diagonal`` of Cov(z) - 1 | Kumar et al. 2018 |
| vq-vae | ``rec + beta commitment``, codes by moving averages | van den Oord et al. 2017 |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import DataError
from .adversary import Adversary, Discriminator
from .architectures import draw_weights
from .objectives import Objective, reconstruction_loss
from .penalties import density_ratio, dip_terms, kl_decomposition
from .quantizer import commitment_loss
from .vq import VQVAE

if TYPE_CHECKING:
    from .checkpoints import Run


@dataclass(frozen=True)
class FactorObjective(Objective):
    """FactorVAE: ``reconstruction + beta * KL + gamma * TC``, the TC told by a discriminator.

    Each step is one of the VAE and then one of the discriminator, which sees the same latents and permuted ones of a second
    minibatch, encoded after the VAE's step. Logged besides: the total correlation as the discriminator tells it, an
    estimate no better than the discriminator and no bound, and the discriminator's loss, log 2 at chance.

    Attributes:
        gamma: weight of the total correlation, >= 0.
        hidden: widths of the discriminator's layers; the paper has six of 1000.
        discriminator_lr: its Adam's learning rate, constant; the paper has that of the VAE.

    Raises:
        DataError: if a weight is negative or not finite, or a width or the learning rate not positive.

    Source: Kim and Mnih 2018 (arXiv 1802.05983), eqs. 2-3 and algorithm 2.

    Example:
        >>> FactorObjective(gamma=35.0).name
        'factor-vae'
    """

    weights: ClassVar[tuple[str, ...]] = (*Objective.weights, "gamma", "discriminator_lr")
    columns: ClassVar[tuple[str, ...]] = (*Objective.columns, "total_correlation", "discriminator")

    gamma: float = 10.0
    hidden: tuple[int, ...] = (256, 256, 256, 256)
    discriminator_lr: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.discriminator_lr == 0 or not self.hidden or min(self.hidden) < 1:
            raise DataError(
                f"FactorObjective: hidden={self.hidden}, discriminator_lr={self.discriminator_lr}, expected positive "
                "widths, at least one, and a positive learning rate."
            )

    @property
    def name(self) -> str:
        """'factor-vae'."""
        return "factor-vae"

    def adversary(self, latent: int, generator: torch.Generator) -> Adversary:
        """The discriminator, with weights drawn from `generator`."""
        with torch.device("meta"):  # where layers are made without torch's global random state
            discriminator = Discriminator(latent, self.hidden)
        draw_weights(discriminator.to_empty(device="cpu"), generator)
        return Adversary.of(discriminator, self.discriminator_lr)

    def penalty(
        self, run: Run, z: Tensor, mu: Tensor, logvar: Tensor, images: int
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """``gamma * TC`` by the discriminator as it is."""
        correlation = density_ratio(_adversary(run).module(z))
        return self.gamma * correlation, {"total_correlation": correlation}

    def after_step(self, run: Run, latents: Tensor, more: Callable[[], Tensor]) -> dict[str, Tensor]:
        """A step of the discriminator."""
        x = more()
        with torch.no_grad():
            mu, logvar = run.module.encode(x)
            others = mu + torch.exp(0.5 * logvar) * torch.randn(mu.shape, generator=run.generator).to(mu)
        return {"discriminator": _adversary(run).update(latents, others, run.generator)}


@dataclass(frozen=True)
class BetaTCObjective(Objective):
    """beta-TC-VAE: ``reconstruction + KL + (beta - 1) * TC``, so that the total correlation in the KL weighs beta in all.

    The KL is exact; only the additional TC is estimated, from the minibatch. Logged besides: that estimate, whose offset
    and bias `kl_decomposition` tells.

    Attributes:
        beta: weight of the total correlation, that in the KL included, >= 0; 1 is a VAE.

    Raises:
        DataError: if a weight is negative or not finite.

    Source: Chen et al. 2018 (arXiv 1802.04942), eq. 4 with alpha = gamma = 1.

    Example:
        >>> BetaTCObjective(beta=6.0).name
        'beta-tc-vae'
    """

    columns: ClassVar[tuple[str, ...]] = (*Objective.columns, "total_correlation")

    beta: float = 4.0

    @property
    def name(self) -> str:
        """'beta-tc-vae'."""
        return "beta-tc-vae"

    @property
    def kl_weight(self) -> float:
        """1: beta is not the KL's."""
        return 1.0

    def penalty(
        self, run: Run, z: Tensor, mu: Tensor, logvar: Tensor, images: int
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """``(beta - 1) * TC`` by minibatch-weighted sampling."""
        correlation = kl_decomposition(z, mu, logvar, images).total_correlation
        return (self.beta - 1) * correlation, {"total_correlation": correlation}


@dataclass(frozen=True)
class DIPObjective(Objective):
    """DIP-VAE-II: ``reconstruction + beta * KL + lambda_od * sum_{i != j} C_ij^2 + lambda_d * sum_i (C_ii - 1)^2``.

    C is the covariance of z over images and noise, estimated from the minibatch. Logged besides: the two sums.

    Attributes:
        lambda_od: weight of the covariances, >= 0.
        lambda_d: weight of the variances' distances from 1, >= 0.

    Raises:
        DataError: if a weight is negative or not finite.

    Source: Kumar et al. 2018 (arXiv 1711.00848), eq. 7.

    Example:
        >>> DIPObjective(lambda_od=5.0, lambda_d=5.0).name
        'dip-vae-ii'
    """

    weights: ClassVar[tuple[str, ...]] = (*Objective.weights, "lambda_od", "lambda_d")
    columns: ClassVar[tuple[str, ...]] = (*Objective.columns, "off_diagonal", "diagonal")

    lambda_od: float = 10.0
    lambda_d: float = 10.0

    @property
    def name(self) -> str:
        """'dip-vae-ii'."""
        return "dip-vae-ii"

    def penalty(
        self, run: Run, z: Tensor, mu: Tensor, logvar: Tensor, images: int
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The weighted covariance terms."""
        terms = dip_terms(mu, logvar)
        return self.lambda_od * terms.off_diagonal + self.lambda_d * terms.diagonal, terms._asdict()


@dataclass(frozen=True)
class VQObjective(Objective):
    """VQ-VAE: ``reconstruction + beta * E_n sum ||h - sg[q]||^2``, the sum over positions and channels; trains `VQVAE`.

    After each step the codebook follows the encodings by moving averages, which stands for the second term of the paper's
    eq. 3. There is no KL to log: under a uniform prior it is ``positions * log(codes)`` throughout. Logged besides: the
    commitment, unweighted, and the perplexity of the codes in a minibatch.

    Attributes:
        beta: weight of the commitment, >= 0; against the Gaussian likelihood of a sd, 0.25 / sd^2 is what 0.25 is at sd 1.

    Raises:
        DataError: if a weight is negative or not finite, or there is a label weight: codes cannot be tied to factors.

    Source: van den Oord et al. 2017 (arXiv 1711.00937), eq. 3 and appendix A.1.

    Example:
        >>> VQObjective().name
        'vq-vae'
    """

    columns: ClassVar[tuple[str, ...]] = ("loss", "reconstruction", "commitment", "perplexity")
    trains: ClassVar[type[nn.Module]] = VQVAE

    beta: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label_weight:
            raise DataError(
                f"VQObjective: label_weight={self.label_weight}, expected 0: codes are not tied to factors."
            )

    @property
    def name(self) -> str:
        """'vq-vae'."""
        return "vq-vae"

    def minibatch(self, run: Run, x: Float[Tensor, "n c h w"], images: int) -> tuple[dict[str, Tensor], Tensor]:
        """The losses of one minibatch by column, and its encodings before quantisation; draws nothing."""
        reconstruction, h, q = run.module(x)
        fit = reconstruction_loss(reconstruction, x, self.likelihood, self.sd).mean()
        commitment = commitment_loss(h, q)
        return {"loss": fit + self.beta * commitment, "reconstruction": fit, "commitment": commitment}, h

    def after_step(self, run: Run, latents: Tensor, more: Callable[[], Tensor]) -> dict[str, Tensor]:
        """The codebook follows the encodings."""
        return {"perplexity": run.module.quantizer.update(latents, run.generator)}


# By name, as on the command line. Gaussian with a small sd since Bernoulli nats are few on small grey images: on 8x8
# digits Bernoulli with beta = 4 collapses (no latent carries anything, KL 0), this one keeps every latent in use.
OBJECTIVES: dict[str, Objective] = {
    "vae": Objective(likelihood="gaussian", sd=0.1),
    "beta-vae": Objective(beta=4.0, likelihood="gaussian", sd=0.1),
    "factor-vae": FactorObjective(likelihood="gaussian", sd=0.1),
    "beta-tc-vae": BetaTCObjective(likelihood="gaussian", sd=0.1),
    "dip-vae-ii": DIPObjective(likelihood="gaussian", sd=0.1),
    "vq-vae": VQObjective(beta=25.0, likelihood="gaussian", sd=0.1),  # the paper's 0.25 at sd = 1, by 1 / sd^2
}


def _adversary(run: Run) -> Adversary:
    if run.adversary is None:
        raise DataError("FactorObjective: the run has no discriminator; make it with `adversary`.")
    return run.adversary
