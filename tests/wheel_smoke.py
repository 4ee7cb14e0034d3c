"""Run by CI against the installed wheel, outside the checkout: adapters, checkpoints and readouts must be inside it."""

from pathlib import Path

import nnsight_vae.adapters
import torch

import nnsight_vae as nv

here = Path(nv.__file__).parent
if "site-packages" not in here.parts or not (here / "py.typed").exists():
    raise SystemExit(f"the wheel was not what got imported: {here}")
data = nv.datasets.load("pendulum")
vae = nv.load("pendulum-beta-vae")
x = data.sample(8).images
if vae.verify(x) != 0.0:
    raise SystemExit("the wrapper is not exact")
with torch.no_grad(), vae.trace(x):
    z = vae.latent.z.output.save()
data.readout()(vae.decode(z).detach())
print(
    f"{here.name} {nv.__version__}: {len(vae.sites)} sites, adapters at {Path(nnsight_vae.adapters.__file__).parent.name}"
)
