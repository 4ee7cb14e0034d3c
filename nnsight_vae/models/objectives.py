"""What a VAE is trained on, in one convention: summed over pixels, summed over latents, averaged over the batch.

In nats per image, so `beta` means what it means in the papers and numbers of different models can be compared
(libraries that average over pixels or latents multiply beta by pixels/latents without saying so).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..errors import DataError
from .networks import GaussianVAE

if TYPE_CHECKING:
    from .adversary import Adversary
    from .checkpoints import Run

LIKELIHOODS = ("bernoulli", "gaussian")


@dataclass(frozen=True)
class Objective:
    """The weights of a training loss: ``reconstruction + beta * KL + label_weight * labels``.

    Base of the other families (see `families`), which add terms of their own and say what a step does besides. A VAE has ``beta=1``, a beta-VAE a larger one, a labelled VAE a positive `label_weight`. What matters to the latents
    is beta times the scale of the likelihood: Gaussian with beta = 4 and sd = .1 trains the same as beta = 1, sd = .2.

    Attributes:
        beta: weight of the KL divergence, >= 0.
        likelihood: of a pixel given its reconstruction: "bernoulli" or "gaussian".
        sd: standard deviation of a pixel under the Gaussian likelihood, in image units.
        label_weight: nats per squared standard deviation of a labelled factor.
        weights: names of the fields that must be finite and >= 0.
        columns: what is logged: the loss, its terms, and what else a family tells.
        trains: the networks it is for.

    Raises:
        DataError: if a weight is negative or not finite, or the likelihood is unknown.

    Source: VAE: Kingma and Welling 2014 (arXiv 1312.6114), eq. 7; beta-VAE: Higgins et al. 2017, eq. 4; a few labels:
    Locatello et al. 2020 (arXiv 1905.01258), eq. 2 with an L2 regulariser.

    Example:
        >>> Objective(beta=4.0).name, Objective(label_weight=100.0).name
        ('beta-vae', 'labelled-vae')
    """

    weights: ClassVar[tuple[str, ...]] = ("beta", "label_weight")
    columns: ClassVar[tuple[str, ...]] = ("loss", "reconstruction", "kl", "labels")
    trains: ClassVar[type[torch.nn.Module]] = GaussianVAE

    beta: float = 1.0
    likelihood: str = "bernoulli"
    sd: float = 1.0
    label_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.likelihood not in LIKELIHOODS:
            raise DataError(f"Objective: unknown likelihood {self.likelihood!r}. Known: {', '.join(LIKELIHOODS)}.")
        for name in self.weights:
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise DataError(f"{type(self).__name__}: {name}={value}, expected a finite number >= 0.")
        if not (math.isfinite(self.sd) and self.sd > 0):
            raise DataError(f"Objective: sd={self.sd}, expected a finite number > 0.")

    @property
    def name(self) -> str:
        """'vae', 'beta-vae' or 'labelled-vae'."""
        if self.label_weight > 0:
            return "labelled-vae"
        return "vae" if self.beta == 1 else "beta-vae"

    @property
    def kl_weight(self) -> float:
        """Weight of the KL divergence in the loss: beta, where a family does not use that name for something else."""
        return self.beta

    def losses(
        self,
        reconstruction: Float[Tensor, "n c h w"],
        x: Float[Tensor, "n c h w"],
        mu: Float[Tensor, "n latent"],
        logvar: Float[Tensor, "n latent"],
    ) -> Losses:
        """The unsupervised losses of one batch; see `Losses`.

        Example:
            >>> x = torch.zeros(2, 1, 4, 4)
            >>> float(Objective(likelihood="gaussian").losses(x, x, torch.ones(2, 3), torch.zeros(2, 3)).kl)
            1.5
        """
        fit = reconstruction_loss(reconstruction, x, self.likelihood, self.sd).mean()
        kl = gaussian_kl(mu, logvar).sum(1).mean()
        return Losses(fit + self.kl_weight * kl, fit, kl)

    def adversary(self, latent: int, generator: torch.Generator) -> Adversary | None:
        """What is trained beside the VAE, with weights drawn from `generator`; None but for FactorVAE."""
        return None

    def minibatch(self, run: Run, x: Float[Tensor, "n c h w"], images: int) -> tuple[dict[str, Tensor], Tensor]:
        """The losses of one minibatch by column, `loss` being what is minimised, and its latents; draws the noise.

        Args:
            run: module, adversary and generator.
            x: images in [0, 1].
            images: size of the training set.
        """
        module = run.module
        eps = torch.randn(len(x), module.fc_mu.out_features, generator=run.generator).to(x)
        reconstruction, mu, logvar = module(x, eps)
        losses = self.losses(reconstruction, x, mu, logvar)
        z = mu + torch.exp(0.5 * logvar) * eps
        weighted, terms = self.penalty(run, z, mu, logvar, images)
        total = losses.total if weighted is None else losses.total + weighted
        return {"loss": total, "reconstruction": losses.reconstruction, "kl": losses.kl, **terms}, z

    def penalty(
        self, run: Run, z: Tensor, mu: Tensor, logvar: Tensor, images: int
    ) -> tuple[Float[Tensor, ""] | None, dict[str, Tensor]]:
        """What the loss has beside reconstruction and ``beta * KL``, weighted, and the terms to log; here nothing."""
        return None, {}

    def after_step(self, run: Run, latents: Tensor, more: Callable[[], Tensor]) -> dict[str, Tensor]:
        """What is done after the VAE's own step, and what to log of it; here nothing.

        Args:
            run: as in `minibatch`.
            latents: of that minibatch, as `minibatch` returned them.
            more: draws another minibatch of images.
        """
        return {}


@dataclass(frozen=True)
class Losses:
    """Losses of one batch, in nats per image.

    Attributes:
        total: ``reconstruction + kl_weight * kl``; at weight 1 the negative ELBO.
        reconstruction: ``E_n[-log p(x|z)]``.
        kl: ``E_n[KL(q(z|x) || N(0, I))]``, unweighted.
    """

    total: Float[Tensor, ""]
    reconstruction: Float[Tensor, ""]
    kl: Float[Tensor, ""]


def summed_beta(beta: float, pixels: int = 1, latents: int = 1) -> float:
    """The beta, in this convention, of a loss that averages over pixels or latents: ``beta * pixels / latents``.

    ``mean_pixels(-log p) + beta * mean_latents(KL)`` is ``sum(-log p) + (beta * pixels / latents) * sum(KL)`` over `pixels`.
    A squared error without its factor 1/2 is the Gaussian likelihood of sd = sqrt(1/2), with it, of sd = 1.

    Args:
        beta: of the other loss.
        pixels: values of an image where the other loss averages over them, channels included; 1 where it sums.
        latents: latents where the other loss averages the KL over them; 1 where it sums.

    Example:
        >>> summed_beta(1.0, pixels=3 * 64 * 64, latents=6)   # what beta = 1 means to disent by default
        2048.0
    """
    return beta * pixels / latents


def gaussian_kl(mu: Float[Tensor, "n latent"], logvar: Float[Tensor, "n latent"]) -> Float[Tensor, "n latent"]:
    """KL of each latent's posterior from the prior, in nats.

    ``KL(N(mu, s^2) || N(0, 1)) = (mu^2 + s^2 - 1 - log s^2) / 2``

    Args:
        mu: posterior means.
        logvar: logarithms of the posterior variances.

    Source: Kingma and Welling 2014 (arXiv 1312.6114), appendix B.

    Example:
        >>> gaussian_kl(torch.tensor([[0.0, 1.0]]), torch.zeros(1, 2))
        tensor([[0.0000, 0.5000]])
    """
    return 0.5 * (mu.square() + logvar.exp() - 1 - logvar)


def reconstruction_loss(
    reconstruction: Float[Tensor, "n c h w"],
    x: Float[Tensor, "n c h w"],
    likelihood: str = "bernoulli",
    sd: float = 1.0,
) -> Float[Tensor, " n"]:
    """Negative log likelihood of each image given its reconstruction, summed over pixels and channels, in nats.

    Bernoulli: ``-sum x log r + (1 - x) log(1 - r)``. For grey values strictly between 0 and 1 its minimum, at r = x, is
    the entropy of x and not 0. Gaussian: ``sum (x - r)^2 / (2 sd^2) + log(sd sqrt(2 pi))``, the constant included.

    Args:
        reconstruction: in [0, 1] for Bernoulli.
        x: images in [0, 1], floats.
        likelihood: "bernoulli" or "gaussian".
        sd: of the Gaussian.

    Raises:
        DataError: if shapes differ, `x` is not floating point, or the likelihood is unknown.

    Source: Kingma and Welling 2014 (arXiv 1312.6114), appendix C.

    Example:
        >>> half = torch.full((1, 1, 2, 2), 0.5)
        >>> round(float(reconstruction_loss(half, torch.ones(1, 1, 2, 2))), 4)   # 4 log 2
        2.7726
    """
    if reconstruction.shape != x.shape:
        raise DataError(f"reconstruction is {tuple(reconstruction.shape)}, images are {tuple(x.shape)}: must be equal.")
    if not x.is_floating_point():
        raise DataError(f"images are {x.dtype}, expected floats in [0, 1]: divide uint8 images by 255.")
    if likelihood == "bernoulli":
        nats = _BernoulliNats.apply(reconstruction, x)
    elif likelihood == "gaussian":
        nats = (x - reconstruction).square() / (2 * sd**2) + math.log(sd * math.sqrt(2 * math.pi))
    else:
        raise DataError(f"Unknown likelihood {likelihood!r}. Known: {', '.join(LIKELIHOODS)}.")
    return nats.sum(tuple(range(1, nats.ndim)))


class _BernoulliNats(torch.autograd.Function):
    """``-x log p - (1 - x) log(1 - p)``, value and gradient of `F.binary_cross_entropy` in a quarter of its time on a CPU.

    That one takes logarithms one by one; these are vectorised, and work in place where they can. Logarithms end at -100 and p (1 - p) at 1e-12, as there.
    """

    @staticmethod
    def forward(ctx: Any, p: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(p, x)
        return torch.neg(p).log1p_().clamp_(min=-100).lerp_(torch.log(p).clamp_(min=-100), x).neg_()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        p, x = ctx.saved_tensors
        return (p - x).mul_(gradient).div_((1 - p).mul_(p).clamp_(min=1e-12)), None
