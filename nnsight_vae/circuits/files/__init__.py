"""Circuits in files that other tools open, and back without loss."""
