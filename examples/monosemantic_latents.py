"""Is a latent monosemantic, and how sure are you? An unsupervised model beside one that was given labels."""

import nnsight_vae as nv

data = nv.datasets.load("pendulum")
for name in ("pendulum-beta-vae", "pendulum-labelled-vae"):
    factor_map = nv.causal.map_factors(nv.load(name), data, n=128)
    print(f"\n{name}: {nv.zoo()[name]}\n{factor_map}")
    nv.plots.save_figure(factor_map.plot()[0], f"{name}.png")
