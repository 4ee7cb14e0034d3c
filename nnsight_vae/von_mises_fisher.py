"""The von Mises-Fisher posterior: a direction, and how closely draws keep to it, on the unit sphere."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from nnsight_vae.errors import PriorError
from nnsight_vae.posterior import Posterior

_NODES = 1024  # angles at which the density is tabulated: quantiles to 1e-6 of a radian
_WIDTHS = 14  # standard deviations beyond the likeliest angle where the table ends: what is left out is below 1e-30


class VonMisesFisher(Posterior):
    """q(z|x) proportional to exp(kappa mu . z) on the unit sphere of d >= 2 dimensions: mu is its direction, a unit vector.

    Its second field, `logvar`, is -log kappa in every coordinate: 1 / kappa is the variance of each coordinate across mu once
    kappa is large. (One kappa has one value in all coordinates; where an intervention makes them differ, their mean counts.)

    Nothing is brought back to the sphere. A coordinate of `latent.mu` or `latent.z` that is set or patched is handed on as it is,
    beside the others as they were: the vector then is no unit vector, and the decoder is asked about a place where it was not
    trained. Where effects on the sphere are meant, patch the whole vector, or wrap with
    `decoder=lambda z: decode(F.normalize(z, dim=1))`: setting one coordinate then turns the vector, which moves the others too.

    Source: Davidson et al. 2018, arXiv 1804.00891.

    Example:
        >>> q = VonMisesFisher.of(torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[100.0]]))
        >>> q.rsample(torch.zeros(1, 3))
        tensor([[1., 0., 0.]])
        >>> round(float(q.rsample(torch.tensor([[0.0, 1.0, 0.0]])).norm()), 5)
        1.0
    """

    @classmethod
    def of(cls, mu: Float[Tensor, "n d"], kappa: Float[Tensor, "n #d"]) -> VonMisesFisher:
        """From a unit vector and the concentration, one an example."""
        return cls(mu, -torch.log(kappa).expand_as(mu))

    @property
    def kappa(self) -> Float[Tensor, " n"]:
        """The concentration of each example."""
        return torch.exp(-self.logvar.mean(1))

    def rsample(self, eps: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The draw at angle theta from mu, towards the part of eps across mu.

        Noise is standard normal, as everywhere, so that runs share it. Of a normal vector, the squared length across mu is
        chi-squared with d - 1 degrees of freedom, whatever its direction; theta is the same quantile of the angle's own
        distribution. So eps = 0 gives mu, and for large kappa z = mu + eps / sqrt(kappa) across mu.
        """
        unit = F.normalize(self.mu, dim=1)
        across = eps - (eps * unit).sum(1, keepdim=True) * unit
        squared = across.square().sum(1)
        at_mode = squared == 0  # its derivatives are taken of mu alone: those of the root of 0 are infinite
        squared = torch.where(at_mode, 1.0, squared)
        theta = torch.where(at_mode, 0.0, _angle(self.kappa, squared, self.mu.shape[1]))[:, None].to(self.mu)
        towards = across / squared.sqrt()[:, None]
        return torch.cos(theta) * self.mu + torch.sin(theta) * self.mu.norm(dim=1, keepdim=True) * towards

    def kl(self) -> Float[Tensor, "n d"]:
        """Refused: the divergence from the uniform law is one of whole vectors, see `joint_kl`.

        Raises:
            PriorError: always.
        """
        raise PriorError(
            "a von Mises-Fisher posterior has no KL per latent: its coordinates share one sphere. Its KL from the uniform law, one "
            "number an example, is vae.encode(x).joint_kl()."
        )

    def joint_kl(self) -> Float[Tensor, " n"]:
        """KL(q(z|x) || uniform on the sphere) per example, in nats: kappa E[cos theta] - log E_uniform[exp(kappa cos theta)].

        Source: Davidson et al. 2018, arXiv 1804.00891, appendix B (there in Bessel functions).
        """
        d = self.mu.shape[1]
        theta, log_density, step = _table(self.kappa, d)
        weights = torch.exp(log_density) * step
        weights = torch.cat([weights[:, :1] / 2, weights[:, 1:-1], weights[:, -1:] / 2], 1)
        total = weights.sum(1)
        cosine = (weights * (torch.cos(theta) - 1)).sum(1) / total  # less 1, as log_density is: large kappas cancel
        sphere = 0.5 * math.log(math.pi) + math.lgamma((d - 1) / 2) - math.lgamma(d / 2)  # log integral of sin^(d-2)
        return (self.kappa.double() * cosine - total.log() + sphere).to(self.mu)


def _table(kappa: Float[Tensor, " n"], d: int) -> tuple[Tensor, Tensor, Tensor]:
    """Angles from 0 to where the density ends `[n, nodes]`, log sin^(d-2) + kappa (cos - 1) there, and their distance `[n, 1]`."""
    kappa = kappa.double()[:, None]
    k = kappa.detach()  # where the table lies has no derivative
    cosine = 2 * k / ((d - 2) + torch.sqrt((d - 2) ** 2 + 4 * k**2)).clamp_min(1e-300)  # of the likeliest angle
    sine = torch.sqrt((1 - cosine) * (1 + cosine))
    curvature = k * cosine + ((d - 2) / sine.square() if d > 2 else 0.0)
    end = (torch.atan2(sine, cosine) + _WIDTHS / torch.sqrt(curvature)).clamp_max(math.pi)
    step = end / (_NODES - 1)
    theta = step * torch.arange(_NODES, device=kappa.device)
    sines = torch.sin(theta).clamp_min(1e-300)
    powers = (d - 2) * sines.log() if d > 2 else torch.zeros_like(theta)
    return theta, powers - 2 * kappa * torch.sin(theta / 2).square(), step


def _angle(kappa: Float[Tensor, " n"], squared: Float[Tensor, " n"], d: int) -> Float[Tensor, " n"]:
    """The angle at the quantile that a chi-squared `squared` of d - 1 degrees of freedom has."""
    theta, log_density, _ = _table(kappa, d)
    density = torch.exp(log_density - log_density.detach().amax(1, keepdim=True))
    mass = torch.cumsum((density[:, 1:] + density[:, :-1]) / 2, dim=1)
    half = torch.tensor((d - 1) / 2, dtype=torch.float64, device=squared.device)
    # Near mu both distributions go as the (d-1)th power of a distance, which is what interpolates well.
    quantile = torch.special.gammainc(half, squared.double() / 2) ** (1 / (d - 1))
    reached = (mass / mass[:, -1:]).clamp_min(1e-300) ** (1 / (d - 1))
    reached = torch.cat([torch.zeros_like(reached[:, :1]), reached], 1)
    above = torch.searchsorted(reached.detach(), quantile.detach()[:, None]).clamp(1, _NODES - 1)
    low, high = reached.gather(1, above - 1)[:, 0], reached.gather(1, above)[:, 0]
    below = theta.gather(1, above - 1)[:, 0]
    return below + (theta.gather(1, above)[:, 0] - below) * ((quantile - low) / (high - low)).clamp(0, 1)
