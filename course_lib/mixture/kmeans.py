"""Seeds and k-means: where EM starts, and what it becomes as the variance goes to zero."""

import torch
from torch import Tensor

from course_lib.points import nearest
from course_lib.require import require_count, require_points

INITS = ("k-means++", "k-means", "random")


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

    Examples:
        >>> x = torch.tensor([[0.0], [0.0], [5.0], [5.0]])
        >>> seeds(x, 2, generator=torch.Generator().manual_seed(0)).sort(0).values
        tensor([[0.],
                [5.]])
    """
    if init not in INITS:
        raise ValueError(f"init must be one of {', '.join(INITS)}; got {init!r}")
    require_points("x", x)
    require_count("k", k)
    if k > len(x):
        raise ValueError(f"k must be at most the number of points, {len(x)}; got {k}")
    if init == "random":
        return x[torch.randperm(len(x), generator=generator, device=x.device)[:k]]
    # in units of a power of two, which rounds nothing, no square overflows
    exponent = x.abs().amax().frexp().exponent.clamp(-100, 100)
    scaled = torch.ldexp(x, -exponent)
    chosen = [torch.randint(len(x), (1,), generator=generator, device=x.device)]
    squared = torch.full_like(x[:, 0], torch.inf)
    while len(chosen) < k:
        squared = torch.minimum(squared, (scaled - scaled[chosen[-1]]).square().sum(1))
        if not (squared > 0).any():
            raise ValueError(f"x has only {len(chosen)} distinct points; {k} seeds were asked for")
        chosen.append(torch.multinomial(squared, 1, generator=generator))
    centers = x[torch.cat(chosen)]
    return k_means(x, centers)[0] if init == "k-means" else centers


def k_means(x: Tensor, centers: Tensor, *, max_iter: int = 100) -> tuple[Tensor, Tensor]:
    r"""Lloyd's algorithm: assign each point to its nearest center, move centers to the means.

    Args:
        x: points, (N, D).
        centers: where to start, (K, D). A center that loses all points stays where it is.
        max_iter: stop after so many rounds even if points still change sides.

    Returns:
        The centers (K, D), and each point's label (N,).

    Examples:
        >>> x = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
        >>> k_means(x, x[:2])
        (tensor([[ 0.5000],
                [10.5000]]), tensor([0, 0, 1, 1]))
    """
    require_points("x", x)
    require_points("centers", centers)
    labels = nearest(x, centers)
    for _ in range(max_iter):
        counts = torch.bincount(labels, minlength=len(centers))
        # summed about the old centers, and in float64: sums of many points lose digits
        sums = torch.zeros_like(centers, dtype=wide(x))
        for part, own in zip(x.split(2**18), labels.split(2**18), strict=True):
            sums.index_add_(0, own, (part - centers[own]).to(sums))
        centers = centers + (sums / counts.clamp(min=1)[:, None]).to(centers)
        before, labels = labels, nearest(x, centers)
        if torch.equal(before, labels):
            break
    return centers, labels


def wide(x: Tensor) -> torch.dtype:
    """The dtype to sum in: float64 keeps the digits, but Apple's GPUs have none."""
    return x.dtype if x.device.type == "mps" else torch.float64
