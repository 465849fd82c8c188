"""Samplers: one visible loop each, for every denoiser. Grids of times, and what all share, are in `steps`."""

from course_lib.diffusion.samplers.ddpm import ancestral, ddim
from course_lib.diffusion.samplers.edm import edm_heun
from course_lib.diffusion.samplers.ode import dopri5, dpm_solver, euler, heun
from course_lib.diffusion.samplers.sde import annealed_langevin, langevin, predictor_corrector, reverse_sde
from course_lib.diffusion.samplers.steps import grid, in_batches, karras, strided

__all__ = [
    "ancestral",
    "annealed_langevin",
    "ddim",
    "dopri5",
    "dpm_solver",
    "edm_heun",
    "euler",
    "grid",
    "heun",
    "in_batches",
    "karras",
    "langevin",
    "predictor_corrector",
    "reverse_sde",
    "strided",
]
