"""Does the model's graph agree with the world's? What the decoder does, what the model preserves, what observation tells, and swaps."""

import nnsight_vae as nv

data = nv.datasets.load("pendulum")
for name in ("pendulum-beta-vae", "pendulum-labelled-vae"):
    vae = nv.load(name)
    factor_map = nv.causal.map_factors(vae, data, n=128)
    graphs = {
        f"through {through}": nv.causal.factor_graph(vae, data, factor_map, through=through, n=128)
        for through in ("latents", "reencoded", "inputs")
    }
    graphs["through inputs, direct"] = nv.causal.factor_graph(
        vae, data, factor_map, kind="direct", through="inputs", n=128
    )
    graphs["discovered"] = nv.causal.discovered_graph(vae, data, factor_map)  # pip install 'nnsight-vae[discovery]'
    print(f"\n=== {name}")
    for how, graph in graphs.items():
        print(f"\n{how}: {sorted(graph.edges)}\n{nv.causal.compare(graph, data.graph)}")
    print(f"\n{nv.causal.interchange_accuracy(vae, data, factor_map, n=128)}")
