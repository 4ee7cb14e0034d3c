"""Which units respond to which factor, and how: several factors side by side, then one factor value by value."""

import nnsight_vae as nv

data = nv.datasets.load("pendulum")
vae = nv.load("pendulum-beta-vae")

pairs = data.pairs_by_factor(n=64, seed=0)  # each factor moved alone, in the same 64 pendulums
effects = nv.manipulate_inputs(vae, pairs, sites=["fc_mu"])
print(effects.significant(q=0.05, min_effect=0.2), "\n")

doses = data.doses("angle", n=64, seed=0, propagate=False)  # seven angles each
response = nv.dose_response(vae, doses, sites=["encoder.6", "fc_mu"])
frame = response.to_frame(q=0.05, min_effect=0.2)
print(frame.query("responds")["shape"].value_counts().to_string())
print(frame.query("site == 'fc_mu'")[["unit", "slope", "slope_low", "slope_high", "monotonicity", "shape"]].round(2))

figure, _ = response.plot()
nv.plots.save_figure(figure, "dose_response_angle.png")
