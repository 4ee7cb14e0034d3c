"""Does the model's graph agree with the world's? The decoder's graph, what the model preserves, and interchange accuracy."""

import nnsight_vae as nv

data = nv.datasets.load("pendulum")
for name in ("pendulum-beta-vae", "pendulum-labelled-vae"):
    vae = nv.load(name)
    factor_map = nv.causal.map_factors(vae, data, n=128)
    print(f"\n=== {name}")
    for through in ("latents", "inputs"):
        graph = nv.causal.factor_graph(vae, data, factor_map, through=through, n=128)
        print(f"\nthrough {through}: {sorted(graph.edges)}\n{nv.causal.compare(graph, data.graph)}")
    print(f"\n{nv.causal.interchange_accuracy(vae, data, factor_map, n=128)}")
