"""Adapters of the diffusion transformer: made, stored, read in every form, put on, taken off."""
