r"""Diffusion, score models and flow matching as one family.

- `path`, `tabulated`: how data turn into noise, :math:`x_t = a x_0 + b \varepsilon`.
- `target`: what a network may predict, two numbers :math:`c_0, c_1`.
- `denoiser`: a network bound to a path and a target, with its loss. What every sampler takes.
- `loss`: densities of the times and weights of the errors. `variational`: DDPM's bound.
- `samplers`: from noise to data, one loop each.
- `oracles`: exact denoisers of mixtures and of finite sets. `guidance`: denoisers made of denoisers.
- `coupling`: which noise goes with which data. `likelihood`: exact, by the flow.
- `score_matching`: losses for a score alone.
"""

from course_lib.diffusion.coupling import optimal, pick, sinkhorn, straightness
from course_lib.diffusion.denoiser import BaseDenoiser, Denoiser, Preconditioning, edm
from course_lib.diffusion.guidance import Clipped, Guided, drop_labels
from course_lib.diffusion.likelihood import log_likelihood
from course_lib.diffusion.loss import as_eps, as_x0, bound, log_normal_sigma, logit_normal, min_snr
from course_lib.diffusion.oracles import DatasetOracle, MixtureOracle
from course_lib.diffusion.path import VE, VP, Cosine, GaussianPath, Linear
from course_lib.diffusion.samplers import (
    ancestral,
    annealed_langevin,
    ddim,
    dopri5,
    dpm_solver,
    edm_heun,
    euler,
    grid,
    heun,
    in_batches,
    karras,
    langevin,
    predictor_corrector,
    reverse_sde,
    strided,
)
from course_lib.diffusion.score_matching import along, denoising, divergence, hyvarinen, sliced
from course_lib.diffusion.tabulated import Tabulated
from course_lib.diffusion.target import Pair, combine, convert, split
from course_lib.diffusion.variational import Bound, variational_bound

__all__ = [
    "VE",
    "VP",
    "BaseDenoiser",
    "Bound",
    "Clipped",
    "Cosine",
    "DatasetOracle",
    "Denoiser",
    "GaussianPath",
    "Guided",
    "Linear",
    "MixtureOracle",
    "Pair",
    "Preconditioning",
    "Tabulated",
    "along",
    "ancestral",
    "annealed_langevin",
    "as_eps",
    "as_x0",
    "bound",
    "combine",
    "convert",
    "ddim",
    "denoising",
    "divergence",
    "dopri5",
    "dpm_solver",
    "drop_labels",
    "edm",
    "edm_heun",
    "euler",
    "grid",
    "heun",
    "hyvarinen",
    "in_batches",
    "karras",
    "langevin",
    "log_likelihood",
    "log_normal_sigma",
    "logit_normal",
    "min_snr",
    "optimal",
    "pick",
    "predictor_corrector",
    "reverse_sde",
    "sinkhorn",
    "sliced",
    "split",
    "straightness",
    "strided",
    "variational_bound",
]
