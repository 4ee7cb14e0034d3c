"""Every model by every capability: the four levels, circuits, maps of factors and attribution, held to an identity each.

Models: the six objectives over the networks they train, the adapter of each library, normalising flows, a Lightning module after
a fit, a ladder, and `adapt`. The identities are in
`capabilities`; what only models with codes can do is refused by name by the others.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import pytest
import torch
import vaes
from capabilities import CAPABILITIES, Moments, N

import nnsight_vae as nv
from nnsight_vae.models import train
from nnsight_vae.models.families import OBJECTIVES

IMAGE = (1, 8, 8)
NETWORKS = {
    "mlp": ("MLPVAE", {"latent": 3, "hidden": (8,)}),
    "conv": ("ConvVAE", {"latent": 3, "channels": (4,), "hidden": 8}),
    "residual": ("ResidualVAE", {"latent": 3, "channels": (4,), "hidden": 8}),
    "codes": ("VQVAE", {"latent": 3, "codes": 3, "channels": (4, 4)}),
}


def trained(objective: str, network: str) -> nv.VAE:
    """A few steps of its own objective: enough to have gone through it."""
    architecture, arguments = NETWORKS[network]
    images = torch.rand(32, *IMAGE, generator=torch.Generator().manual_seed(0))
    done = train(
        images,
        objective=OBJECTIVES[objective],
        architecture=architecture,
        arguments=arguments,
        steps=4,
        batch_size=16,
        progress=False,
    )
    return nv.VAE(done.module)


def of_pythae(name: str) -> nv.VAE:
    from test_adapter_pythae import made, spatial_vq

    return nv.VAE(spatial_vq() if name == "VQVAE" else made(name))


def of_disent() -> nv.VAE:
    import test_adapter_disent as library

    return nv.VAE(library.framework(library.imported(), "BetaVae"))


def of_diffusers(name: str) -> nv.VAE:
    import test_adapter_diffusers as library

    x = library.inputs(3, 8, 8)
    return nv.VAE(library.trained_vq(x) if name == "vq" else library.made(library.MODELS[name][0]), example=x)


def of_scvi() -> nv.VAE:
    from test_adapter_scvi import CASES, model_of

    setup, options, adapter = CASES["one batch"]
    return nv.VAE(model_of(setup, **options)[0].module, adapter)


def by_hand() -> nv.VAE:
    """Codes that only the decoder snaps to, told of by `adapt`."""
    model = vaes.vq_vae()
    return nv.adapt(model, codebook=model.codebook.weight, example=vaes.images(model, 2))


def of_lightning() -> nv.VAE:
    """A module that a trainer fitted, its layers inside it, its forward sampling."""
    lightning = pytest.importorskip("lightning", reason="lightning is not installed")

    class Lit(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = vaes.seeded(vaes.ConvVAE(channels=1))

        def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.net.encode(x)

        def decode(self, z: torch.Tensor) -> torch.Tensor:
            return self.net.decode(z)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)[0]

        def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
            self.log("loss", loss := (self(batch) - batch).square().mean())
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=1e-3)

    lit = Lit()
    images = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "logger": False,
    }
    lightning.Trainer(max_epochs=1, accelerator="cpu", **quiet).fit(lit, torch.utils.data.DataLoader(images, 4))
    return nv.VAE(lit)


MODELS: dict[str, Callable[[], nv.VAE]] = {
    **{
        f"{objective} {network}": partial(trained, objective, network)
        for objective in OBJECTIVES
        for network in NETWORKS
        if (objective == "vq-vae") == (network == "codes")
    },
    **{
        f"pythae {name}": partial(of_pythae, name)
        for name in ("VAE", "FactorVAE", "BetaTCVAE", "VAE_IAF", "VAE_LinNF", "VQVAE")
    },
    "disent BetaVae": of_disent,
    **{f"diffusers {name}": partial(of_diffusers, name) for name in ("kl", "tiny", "vq")},
    "scvi SCVI": of_scvi,
    "lightning": of_lightning,
    "adapt codes": by_hand,
    "adapt flow": lambda: nv.VAE(vaes.seeded(vaes.FlowVAE()), vaes.WithFlow()),
    "adapt ladder": vaes.ladder,
}

REFUSED = {("pythae VAE_IAF", "circuit"): "'iaf_flow.net.1.net.0' is not what a MaskedLinear makes of its input"}
SLOW = {"diffusers kl", "diffusers tiny", "diffusers vq"}  # many layers, each with its edges
COLUMN = [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in MODELS]


@cache
def model(name: str) -> nv.VAE:
    return MODELS[name]()


def inputs_of(vae: nv.VAE) -> torch.Tensor:
    return torch.rand(N, *vae.sites["input"].shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning", "ignore::nnsight_vae.NnsightVaeWarning")
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", COLUMN)
def test_every_model_can_do_what_a_vae_can(name, capability):
    vae = model(name)
    x, ask = inputs_of(vae), CAPABILITIES[capability]
    before = vae.fingerprint
    if refusal := REFUSED.get((name, capability)):
        with pytest.raises(nv.NnsightVaeError, match=refusal):
            ask(vae, x)
    else:
        ask(vae, x)
    assert vae.fingerprint == before


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("name", COLUMN)
def test_swaps_of_codes_are_for_models_with_codes_and_refused_by_name_elsewhere(name):
    vae = model(name)
    x = inputs_of(vae)
    if vae.adapter.codebook is None:
        with pytest.raises(nv.InterventionError, match=r"Quantize\(1\) does not apply: this VAE has no codebook"):
            nv.intervene(vae, x, {"latent.z": nv.Quantize(1)})
        with pytest.raises(nv.InterventionError, match="this VAE has no codebook"):
            nv.perturb_latents(vae, x, "codes", readout=Moments())
        return
    everywhere = nv.intervene(vae, x, {"latent.z": nv.Quantize(1)}).z
    assert torch.equal(
        everywhere, vae.adapter.codebook[1].view(1, -1, *[1] * (everywhere.ndim - 2)).expand_as(everywhere)
    )
    with pytest.raises(nv.InterventionError, match=r"Quantize\(99\) does not fit a codebook of shape"):
        nv.intervene(vae, x, {"latent.z": nv.Quantize(99)})
