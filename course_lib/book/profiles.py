"""How a chapter is run: profile, device and seed."""

import os
import random
from typing import NamedTuple, TypeVar

import numpy as np
import torch

PROFILES = ("smoke", "book", "full")

T = TypeVar("T")


class Run(NamedTuple):
    """What `start` decided, and `pick` to choose sizes by profile."""

    profile: str
    device: torch.device
    seed: int

    def pick(self, *, smoke: T, book: T, full: T) -> T:
        """Return the value that belongs to this run's profile."""
        return {"smoke": smoke, "book": book, "full": full}[self.profile]


def start(profile: str | None = None, seed: int = 0) -> Run:
    r"""Choose the profile and the device, and seed every random generator.

    On a processor the small profiles run PyTorch on one thread, which is faster for their small arrays.

    Args:
        profile: ``"smoke"``, ``"book"`` or ``"full"``. ``None`` takes the environment
            variable ``COURSE_PROFILE``; where that is unset, ``"full"`` with CUDA, else
            ``"book"``.
        seed: seed of Python's, NumPy's and PyTorch's generators, in :math:`[0, 2^{32})`.

    Returns:
        A `Run`: profile, device (CUDA, else Apple's MPS, else CPU) and seed.

    Raises:
        ValueError: the profile is unknown, or the seed is not an integer in range.
    """
    cuda = torch.cuda.is_available()
    if profile is None:
        profile = os.environ.get("COURSE_PROFILE") or ("full" if cuda else "book")
    if profile not in PROFILES:
        raise ValueError(f"profile must be one of {', '.join(PROFILES)}; got {profile!r}")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be an integer in [0, 2**32); got {seed!r}")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    mps = torch.backends.mps.is_available()
    if profile != "full" and not cuda and not mps:
        torch.set_num_threads(1)  # the small profiles' arrays are small: a second thread only waits
    return Run(profile, torch.device("cuda" if cuda else "mps" if mps else "cpu"), seed)
