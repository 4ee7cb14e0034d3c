"""Pixels -> latents, latents -> factors, units -> latents: attributions, and whether patching says the same."""

from captum.attr import Occlusion

import nnsight_vae as nv

data = nv.datasets.load("pendulum")
vae = nv.load("pendulum-beta-vae")
images = data.sample(4, seed=0).images
reference = data.sample(256, seed=1).images  # stands for the data: its mean is the baseline

pixels = nv.attribution.LatentIntegratedGradients(vae, reference=reference)
maps = pixels.attribute(images, target=None)  # [image, latent, channel, row, column]
print(pixels.record.baseline, dict(pixels.flags))
figure, _ = nv.attribution.plot_attribution_atlas(images, maps)
nv.plots.save_figure(figure, "attribution_atlas.png")

decoder = nv.attribution.DecoderIntegratedGradients(vae, data.readout())
shares = decoder.attribute(
    vae.encode(images).mu, target="angle"
)  # [image, latent], in standard deviations of the angle
print("mean contribution of each latent to the angle shown:", [f"{share:+.2f}" for share in shares.mean(0)])

forward = nv.attribution.captum_forward(vae, to="mu")  # any Captum method, unchanged
occluded = Occlusion(forward).attribute(images, target=3, sliding_window_shapes=(3, 8, 8), strides=(3, 8, 8))
print("occlusion:", tuple(occluded.shape))

pairs = data.pairs("angle", n=32, seed=0)
latents = nv.readouts.Latents(8)
effects = nv.patch_activations(vae, pairs, ["encoder.7"], readout=latents)
conductance = nv.attribution.LatentConductance(vae, "encoder.7").attribute(
    pairs.source, baselines=pairs.base, n_steps=100
)
print(nv.attribution.agreement(conductance, effects))
