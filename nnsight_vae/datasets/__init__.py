"""Data with known factors."""
