"""Circuits as pictures and as an interactive page."""
