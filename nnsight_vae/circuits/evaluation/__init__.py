"""How much of what a model does a circuit does on its own, and tests of that."""
