"""Pixels -> latents: which pixels make each latent what it is, and does patching those pixels say the same?"""

import nnsight_vae as nv

data, vae = nv.datasets.load("pendulum"), nv.load("pendulum-labelled-vae")
pairs = data.pairs("angle", n=6, seed=0)  # base and source: the same scene at two angles

method = nv.attribution.LatentIntegratedGradients(vae)
maps = method.attribute(pairs.base, baselines=pairs, target=None)  # [image, latent, channel, row, column]
nv.plots.save_figure(nv.attribution.plot_attribution_atlas(pairs.base, maps)[0], "attribution_atlas.png")

effects = nv.patch_activations(vae, pairs, ["input"], readout=nv.readouts.Latents(8)["latent.mu[0]"], per="position")
print(nv.attribution.agreement(maps, effects))  # over all 4,096 pixels
