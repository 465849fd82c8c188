"""Seeds and k-means: where EM starts, and what it becomes as the variance goes to zero."""

import torch
from torch import Tensor

from course_lib.require import require_count, require_points

INITS = ("k-means++", "k-means", "random")


def nearest(x: Tensor, centers: Tensor) -> Tensor:
    """Index of each point's nearest center. x: (N, D), centers: (K, D). Returns (N,)."""
    origin = centers.mean(0)  # keeps the squares small, so that none cancels
    c = centers - origin
    half = c.square().sum(1) / 2
    # ½‖x − c‖² less ½‖x‖², which is the same for every c; no (N, K, D) array is made. A core wants
    # chunks of distances that stay in its cache, a GPU larger ones.
    size = max(64, 2 ** (22 if x.device.type == "cpu" else 28) // (len(c) * x.element_size()))
    return torch.cat([torch.addmm(half, p - origin, c.T, alpha=-1).argmin(1) for p in x.split(size)])


def seeds(x: Tensor, k: int, *, init: str = "k-means++", generator: torch.Generator | None = None) -> Tensor:
    r"""Choose k starting centers.

    Args:
        x: points, (N, D).
        k: how many, at most N.
        init: ``"random"`` draws k points without replacement. ``"k-means++"`` draws each next
            point with probability proportional to its squared distance from the nearest
            one drawn so far (Arthur and Vassilvitskii 2007, section 2.2). ``"k-means"``
            refines those by Lloyd's algorithm.
        generator: randomness, on x's device.

    Returns:
        Centers, (k, D).

    Raises:
        ValueError: `init` is unknown, k is not in 1 ... N, or x has fewer than k distinct points.
    """
    if init not in INITS:
        raise ValueError(f"init must be one of {', '.join(INITS)}; got {init!r}")
    require_points("x", x)
    require_count("k", k)
    if k > len(x):
        raise ValueError(f"k must be at most the number of points, {len(x)}; got {k}")
    if init == "random":
        return x[torch.randperm(len(x), generator=generator, device=x.device)[:k]]
    first = torch.randint(len(x), (1,), generator=generator, device=x.device)
    chosen, squared = [x[first]], torch.full_like(x[:, 0], torch.inf)
    while len(chosen) < k:
        squared = torch.minimum(squared, (x - chosen[-1]).square().sum(1))
        if not (squared > 0).any():
            raise ValueError(f"x has only {len(chosen)} distinct points; {k} seeds were asked for")
        chosen.append(x[torch.multinomial(squared, 1, generator=generator)])
    centers = torch.cat(chosen)
    return k_means(x, centers)[0] if init == "k-means" else centers


def k_means(x: Tensor, centers: Tensor, *, max_iter: int = 100) -> tuple[Tensor, Tensor]:
    r"""Lloyd's algorithm: assign each point to its nearest center, move centers to the means.

    Args:
        x: points, (N, D).
        centers: where to start, (K, D). A center that loses all points stays where it is.
        max_iter: stop after so many rounds even if points still change sides.

    Returns:
        The centers (K, D), and each point's label (N,).
    """
    require_points("x", x)
    if centers.ndim != 2 or centers.shape[1] != x.shape[1] or centers.dtype != x.dtype:
        raise ValueError(
            f"centers must be (K, {x.shape[1]}) and {x.dtype}; got {tuple(centers.shape)}, {centers.dtype}"
        )
    labels = nearest(x, centers)
    for _ in range(max_iter):
        counts = torch.bincount(labels, minlength=len(centers)).to(x)[:, None]
        # summed about the old centers: sums of the points themselves lose digits far from zero
        steps = torch.zeros_like(centers).index_add_(0, labels, x - centers[labels])
        centers = centers + steps / counts.clamp(min=1)
        before, labels = labels, nearest(x, centers)
        if torch.equal(before, labels):
            break
    return centers, labels
