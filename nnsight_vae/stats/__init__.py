"""Statistics of means over pairs that share images: arrays in, arrays out, no model in sight."""
