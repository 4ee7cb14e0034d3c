"""The four levels of intervention: inputs, latents, activations, mediation."""
