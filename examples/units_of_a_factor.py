"""Which units carry the pendulum's angle? Patch every unit of some sites between images that differ by do(angle)."""

import nnsight_vae as nv

data = nv.datasets.load("pendulum")
vae = nv.load("pendulum-beta-vae")
pairs = data.pairs("angle", n=48, seed=0)
readout = data.readout()

effects = nv.patch_activations(vae, pairs, sites=["encoder.6", "fc_mu", "decoder.5"], readout=readout)
print(effects.significant(q=0.05, min_effect=0.02).select(targets="angle"))  # the ten largest; to_frame() has all

inputs = nv.manipulate_inputs(vae, pairs, sites=["fc_mu"])
print("\n", inputs, sep="")

figure, _ = effects.plot()
nv.plots.save_figure(figure, "units_of_angle.png")
