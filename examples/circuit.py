"""The circuit of the angle, as a networkx graph, a file for Gephi and a page for the browser."""

import nnsight_vae as nv

data = nv.datasets.load("pendulum")
vae = nv.load("pendulum-labelled-vae")
pairs = data.pairs("angle", n=48, seed=0)
readout = data.readout()["angle"]

circuit = nv.extract_circuit(vae, pairs, readout)
print(circuit)
others = data.pairs("angle", n=48, seed=1)  # not those it was found on
scores = nv.score_edges(vae, others, readout)
print(nv.circuits.faithfulness(vae, circuit, others, readout, scores=scores, baselines=("weight", "random")))
for suffix in ("json", "graphml", "html"):
    nv.export(circuit, f"angle.{suffix}")
print(nv.read_circuit("angle.json"))
