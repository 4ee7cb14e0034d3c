"""The shape of circuits: motifs, hubs, overlap, communities, each beside its null."""
