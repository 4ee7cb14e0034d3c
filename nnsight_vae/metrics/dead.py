"""Which latents are dead: they move nothing, and the encoder puts nothing into them."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

COLLAPSED = 0.01  # nats: a latent with less KL carries next to nothing about the input
_NO_EFFECT = 1e-5  # share of the yardstick at which an effect is what rounding leaves of none


def dead_flags(
    sizes: Float[np.ndarray, " latent"],
    *,
    below: float,
    scale: float | None = None,
    kl: Float[np.ndarray, " latent"] | None = None,
) -> tuple[str, ...]:
    """A flag for each latent: `"dead: ..."`, `"collapsed: ..."`, or empty.

    A latent is dead when its effect is at most `below` times the yardstick and, where its KL is known, the KL is under 0.01
    nats too: a small feature moves few pixels and is no less alive for it. One that has no effect at all is dead whatever its
    KL. One that is collapsed but has an effect is flagged as such and stays: the decoder listens where the encoder says
    nothing.

    Args:
        sizes: effect of each latent.
        below: share of the yardstick.
        scale: the yardstick, in units of the effects, such as the spread of the outputs; None: the strongest latent's effect,
            by which a fully collapsed model is not recognised.
        kl: KL(q(z_k|x) || prior) of each latent in nats, mean over examples.
    """
    against = "the strongest latent's" if scale is None else "the spread"
    yardstick = float(sizes.max(initial=0.0)) if scale is None else scale
    flags = []
    for k, size in enumerate(sizes):
        collapsed = kl is None or kl[k] < COLLAPSED
        nats = "" if kl is None else f", KL {kl[k]:.2g} nats"
        if size <= _NO_EFFECT * yardstick:
            flags.append(f"dead: no effect{nats}")
        elif size <= below * yardstick and collapsed:
            flags.append(f"dead: effect at most {100 * below:g} % of {against}{nats}")
        else:
            flags.append(f"collapsed: KL {kl[k]:.2g} nats" if kl is not None and collapsed else "")
    return tuple(flags)
