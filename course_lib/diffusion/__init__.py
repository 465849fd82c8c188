"""Diffusion and flow matching as one family: a path, a target, a loss, a sampler, and exact oracles."""
