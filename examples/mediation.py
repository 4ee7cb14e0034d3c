"""How much of the effect of the angle goes through these channels, along which paths, and whose share is it?"""

import nnsight_vae as nv

data = nv.datasets.load("pendulum")
vae = nv.load("pendulum-beta-vae")
pairs = data.pairs("angle", n=64, seed=0)
readout = data.readout()["angle"]

for mediators in (["encoder.4[0:8]"], ["latent.z[6]"], ["latent.z"]):
    print(nv.mediate(vae, pairs, mediators=mediators, readout=readout, hold=0.0), "\n")

paths = nv.path_effects(vae, pairs, ["encoder.4[0:8]", "latent.z[6]"], readout=readout)  # adds up to the total effect
print(paths, "\n")

latents = [f"latent.z[{i}]" for i in range(vae.sites["latent.z"].n_units)]
shares = nv.shapley_mediators(vae, pairs, latents, readout=readout)  # adds up to the effect through all of them
print(shares)
