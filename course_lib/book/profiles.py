"""How a chapter is run: profile, device and seed."""

import os
from typing import NamedTuple, TypeVar

import torch

from course_lib.book.show import set_style
from course_lib.training.device import pick_device, seed_everything

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
    r"""Choose the profile and the device, seed every random generator, and set the figures' style.

    It is the one call that changes what is global, and a notebook's first. On a
    processor the small profiles run PyTorch on one thread, which is faster for their small arrays.

    Args:
        profile: ``"smoke"``, ``"book"`` or ``"full"``. ``None`` takes the environment
            variable ``COURSE_PROFILE``; where that is unset, ``"full"`` with CUDA, else
            ``"book"``.
        seed: seed of Python's, NumPy's and PyTorch's generators, in :math:`[0, 2^{32})`.

    Returns:
        A `Run`: profile, device (CUDA, else Apple's MPS, else CPU) and seed.

    Raises:
        ValueError: the profile is unknown, or the seed is not an integer in range.

    Examples:
        >>> run = start("smoke", seed=1)
        >>> run.seed, run.pick(smoke=10, book=1_000, full=100_000)
        (1, 10)
    """
    if profile is None:
        profile = os.environ.get("COURSE_PROFILE") or ("full" if torch.cuda.is_available() else "book")
    if profile not in PROFILES:
        raise ValueError(f"profile must be one of {', '.join(PROFILES)}; got {profile!r}")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be an integer in [0, 2**32); got {seed!r}")
    set_style()
    seed_everything(seed)
    device = pick_device()
    if profile != "full" and device.type == "cpu":
        torch.set_num_threads(1)  # the small profiles' arrays are small: a second thread only waits
    return Run(profile, device, seed)
