"""Posteriors: what an encoder says about the latent, and the forms in which encoders say it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from nnsight_vae.errors import AdapterError, NnsightVaeWarning, PriorError
from nnsight_vae.wording import shapes

Packed = bool | Literal["interleaved"]

_MEAN = ("mu", "mean", "loc", "z_mean", "z_mu", "embedding")
_LOGVAR = ("logvar", "log_var", "log_variance", "log_covariance", "z_logvar", "z_log_var")
_SCALE = ("std", "sigma", "scale", "stddev", "z_std")
_VARIANCE = ("var", "variance")
_CONCENTRATION = ("kappa", "concentration")
_UNIT = 1e-3  # a direction's length may be off 1 by this much
_KEEPS_SIGN = ("Add", "Clamp", "View", "Unsafe", "Clone", "Slice", "Squeeze", "Unsqueeze", "Split", "Select", "ToCopy")
_POSITIVE = ("Softplus", "Exp", "Sigmoid", "Sqrt")  # autograd's names of what makes a scale or a variance
POINT_MASS = -60.0  # log variance of a posterior that is all at one value: sd 1e-13, and finite, as analyses ask


class Posterior(NamedTuple):
    """A diagonal Gaussian q(z|x) = N(mu, diag exp(logvar)).

    Attributes:
        mu: mean, `[n, *latent]`, in latent units.
        logvar: log variance, same shape.

    Example:
        >>> q = Posterior(torch.zeros(2, 3), torch.zeros(2, 3))
        >>> q.kl().tolist()
        [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """

    mu: Float[Tensor, "n *latent"]
    logvar: Float[Tensor, "n *latent"]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({shapes(self._asdict())})"

    @property
    def sd(self) -> Float[Tensor, "n *latent"]:
        """Posterior standard deviation, exp(logvar / 2)."""
        return torch.exp(0.5 * self.logvar)

    def rsample(self, eps: Float[Tensor, "n *latent"]) -> Float[Tensor, "n *latent"]:
        """z = mu + sd * eps, with explicit standard-normal noise so that runs can share it."""
        return self.mu + self.sd * eps

    @classmethod
    def point(cls, mu: Float[Tensor, "n *latent"]) -> Posterior:
        """The posterior of an encoder that states a value and no spread: a plain autoencoder's, or a code of a codebook."""
        return cls(mu, torch.full_like(mu, POINT_MASS))

    def kl(self) -> Float[Tensor, "n *latent"]:
        """KL(q(z_k|x) || N(0, 1)) per example and latent, in nats: (mu^2 + exp(logvar) - 1 - logvar) / 2.

        Source: Kingma and Welling 2014, arXiv 1312.6114, appendix B.
        """
        return 0.5 * (self.mu.square() + self.logvar.exp() - 1.0 - self.logvar)

    def joint_kl(self) -> Float[Tensor, " n"]:
        """KL of the whole latent from its prior, per example, in nats: the sum of `kl` where latents are independent."""
        return self.kl().flatten(1).sum(1)


class OtherPrior(Posterior):
    """A diagonal Gaussian over a latent whose prior is not N(0, 1), so that its KL is not known here.

    That of the base of a normalising flow, whose prior is that of the flow's end carried back; of a level of a ladder, whose prior
    depends on the levels above it; of a model with a learned prior. Let an adapter's `encode` return one where that is so.

    Example:
        >>> q = OtherPrior(torch.zeros(1, 2), torch.zeros(1, 2))
        >>> q.rsample(torch.ones(1, 2))
        tensor([[1., 1.]])
    """

    def kl(self) -> Float[Tensor, "n *latent"]:
        """Refused: N(0, 1) is not the prior.

        Raises:
            PriorError: always.
        """
        raise PriorError(
            "the KL of this VAE's latents is not known: their prior is not N(0, 1). That of a level of a ladder usually depends on the "
            "levels above it (if every level has the prior N(0, 1), say so: nv.adapt(..., levels=..., standard_prior=True)), and that "
            "of what enters a flow on the flow."
        )


class Laplace(Posterior):
    """A factorised Laplace q(z|x): mu is its location, exp(logvar) its variance 2 b^2.

    Noise is standard normal here too, so that runs share it whatever the posterior: eps is carried through the normal's
    distribution function and the Laplace's quantile function, which is monotone and leaves 0 at 0.

    Example:
        >>> Laplace(torch.zeros(1, 2), torch.zeros(1, 2)).rsample(torch.tensor([[0.0, 1.0]]))
        tensor([[0.0000, 0.8117]])
    """

    def rsample(self, eps: Float[Tensor, "n *latent"]) -> Float[Tensor, "n *latent"]:
        """z = mu + b * sign(eps) * (-log(2 Phi(-|eps|))), with b = sd / sqrt 2."""
        unit = -torch.sign(eps) * (torch.special.log_ndtr(-eps.abs()) + math.log(2.0))
        return self.mu + self.sd * unit / math.sqrt(2.0)

    def kl(self) -> Float[Tensor, "n *latent"]:
        """KL(q(z_k|x) || Laplace(0, 1)) per example and latent, in nats: |mu| + b exp(-|mu|/b) - log b - 1.

        Source: the integral of the two densities; as `torch.distributions.kl_divergence` has it.
        """
        b = self.sd / math.sqrt(2.0)
        return self.mu.abs() + b * torch.exp(-self.mu.abs() / b) - b.log() - 1.0


def read_posterior(value: Any, *, packed: Packed = False, where: str = "encode") -> Posterior:
    """Read what an encoder returned as a posterior: Gaussian, unless it says Laplace or von Mises-Fisher.

    Args:
        value: `(mu, logvar)`; a mapping, named tuple, dataclass or object with named mean and log variance / scale /
            variance, or direction and concentration (`mu`, `kappa`: von Mises-Fisher); a Normal or Laplace `torch.distributions`
            object, or a `VonMisesFisher` one with `loc` and `scale`; or one tensor `[n, 2 d, ...]` of mu and logvar if `packed`.
            By position the second tensor is the log variance: a scale must come with its name.
        packed: read a single tensor as mu, then logvar, along axis 1; `"interleaved"`: as mu_0, logvar_0, mu_1, logvar_1, ...
        where: named in errors.

    Raises:
        AdapterError: the value cannot be read as a posterior.

    Warns:
        NnsightVaeWarning: a log variance by position is never negative and autograd saw it come out of softplus or exp.
    """
    if isinstance(value, Posterior):
        return value
    if isinstance(value, torch.distributions.Distribution):
        return _from_distribution(value, where)
    if isinstance(value, Tensor):
        return _from_packed(value, packed, where)
    if named := _from_names(value, where):
        return named
    if isinstance(value, tuple | list) and len(value) >= 2 and all(isinstance(v, Tensor) for v in value[:2]):
        if value[0].shape != value[1].shape:
            raise AdapterError(
                f"{where} returned tensors of shapes {tuple(value[0].shape)} and {tuple(value[1].shape)}, expected mu and logvar of equal shape."
            )
        if any(isinstance(v, Tensor) and v.shape == value[0].shape for v in value[2:]):
            raise AdapterError(
                f"{where} returned {len(value)} tensors of mu's shape; which of them are mu and logvar cannot be told (some models "
                "return z first). Say so: nv.adapt(module, encoder=lambda x: module.encode(x)[1:3], decoder=module.decode)."
            )
        _warn_of_scale(value[1], where)
        return Posterior(value[0], value[1])
    raise AdapterError(
        f"{where} returned {type(value).__name__}, expected (mu, logvar), names such as mu/logvar, or a Normal distribution. "
        "Use nv.adapt(module, encoder=lambda x: (mu, logvar), decoder=...)."
    )


def _from_packed(value: Tensor, packed: Packed, where: str) -> Posterior:
    shape = tuple(value.shape)
    if not packed:
        raise AdapterError(
            f"{where} returned one tensor of shape {shape}, expected (mu, logvar). If it holds mu and logvar along axis 1, wrap with "
            'nv.adapt(module, packed=True), or packed="interleaved" where they alternate; if it is a plain autoencoder, it has no posterior.'
        )
    if len(shape) < 2 or shape[1] % 2:
        raise AdapterError(
            f"{where} returned a tensor of shape {shape}; a packed posterior has an even axis 1 (mu and logvar)."
        )
    if packed == "interleaved":
        return Posterior(value[:, 0::2], value[:, 1::2])
    return Posterior(*value.chunk(2, dim=1))


def _warn_of_scale(logvar: Tensor, where: str) -> None:
    """Name a scale that comes where a log variance is expected. Autograd has seen how it was made, where it watched."""
    made = logvar.grad_fn
    while made is not None and made.name().startswith(_KEEPS_SIGN):
        made = next((before for before, _ in made.next_functions if before is not None), None)
    if made is not None and made.name().startswith(_POSITIVE) and bool((logvar >= 0).all()):
        warnings.warn(
            f"{where} returned (mu, s) with s >= 0 everywhere, out of {made.name().removesuffix('Backward0').lower()}: by position s is "
            'read as the log variance. If it is a standard deviation, return {"mu": mu, "scale": s}; if a variance, '
            '{"mu": mu, "variance": s}.',
            NnsightVaeWarning,
            stacklevel=4,
        )


def _from_distribution(value: torch.distributions.Distribution, where: str) -> Posterior:
    base = value
    while isinstance(base, torch.distributions.Independent):
        base = base.base_dist
    if type(base).__name__ == "VonMisesFisher":  # as the paper's own code calls it
        return _directed(base.loc, base.scale, where)  # type: ignore[attr-defined]
    kind = {torch.distributions.Normal: Posterior, torch.distributions.Laplace: Laplace}.get(type(base))
    if kind is None:
        raise AdapterError(
            f"{where} returned a {type(base).__name__} posterior; Normal, Laplace and VonMisesFisher posteriors can be read so far."
        )
    return kind(base.mean, 2.0 * torch.log(base.stddev))


def _directed(mu: Tensor, kappa: Tensor, where: str) -> Posterior:
    """A von Mises-Fisher posterior, whose mean is a direction."""
    from nnsight_vae.von_mises_fisher import VonMisesFisher

    length = mu.detach().norm(dim=1)
    if mu.ndim != 2 or mu.shape[1] < 2 or kappa.numel() != len(mu) or bool(((length - 1).abs() > _UNIT).any()):
        raise AdapterError(
            f"{where} returned a von Mises-Fisher posterior with mu of shape {tuple(mu.shape)} and lengths {float(length.min()):.3g} to "
            f"{float(length.max()):.3g}, kappa of shape {tuple(kappa.shape)}; expected unit vectors [n, d >= 2] "
            "(torch.nn.functional.normalize) and one kappa an example."
        )
    return VonMisesFisher.of(mu, kappa.reshape(-1, 1))


def _from_names(value: Any, where: str) -> Posterior | None:
    """Mean and spread by name, from a mapping, a named tuple, a dataclass or attributes; None where there are no names."""
    if isinstance(value, Mapping):
        names: Mapping[str, Any] = value
    elif isinstance(value, tuple | list) and not hasattr(value, "_asdict"):
        return None  # by position; its attributes (tuple.count, tuple.index) are no names
    else:
        wanted = (*_MEAN, *_LOGVAR, *_SCALE, *_VARIANCE, *_CONCENTRATION)
        names = {n: found for n in wanted if isinstance(found := getattr(value, n, None), Tensor)}
    mu = next((names[n] for n in _MEAN if n in names), None)
    if mu is None:
        return None
    for key in _CONCENTRATION:
        if key in names:
            return _directed(mu, names[key], where)
    for keys, read in ((_LOGVAR, lambda v: v), (_SCALE, lambda v: 2.0 * torch.log(v)), (_VARIANCE, torch.log)):
        for key in keys:
            if key in names:
                return Posterior(mu, read(names[key]))
    return None
