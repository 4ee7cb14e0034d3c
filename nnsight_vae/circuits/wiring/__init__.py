"""How a VAE is wired, and what travels along its edges in runs of some pairs."""
