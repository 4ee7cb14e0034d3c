"""Latents -> pixels and factors: what each latent contributes to the image, and what the image would be if the angle were another."""

import nnsight_vae as nv

data, vae = nv.datasets.load("pendulum"), nv.load("pendulum-labelled-vae")
z = vae.encode(data.sample(4, seed=0).images).mu

decoder = nv.attribution.DecoderIntegratedGradients(vae, data.readout())
print(decoder.attribute(z, target="angle").round(decimals=2))  # [image, latent], in standard deviations of the angle

nv.plots.save_figure(nv.attribution.plot_jacobian(nv.attribution.DecoderJacobian(vae).at(z))[0], "decoder_jacobian.png")
shift = nv.attribution.LatentShift(vae, data.readout()).path(z, target="angle", amount=1.0)
print(shift, nv.attribution.save_animation(shift, "angle.gif"))
