"""How much of the effect of the angle goes through these channels?"""

import nnsight_vae as nv

data = nv.datasets.load("pendulum")
vae = nv.load("pendulum-beta-vae")
pairs = data.pairs("angle", n=64, seed=0)
readout = data.readout()["angle"]

for mediators in (["encoder.4[0:8]"], ["latent.z[6]"], ["latent.z"]):
    print(nv.mediate(vae, pairs, mediators=mediators, readout=readout), "\n")
