"""Time one EM iteration with full covariances against scikit-learn, from the same start.

Prints a Markdown table; `python benchmarks/gmm_em.py 2` runs its second row only. One iteration
takes (m iterations − 1 iteration) / (m − 1), of the best of several interleaved repeats.
"""

import os
import platform
import sys
import time
import warnings

import numpy as np
import sklearn
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as Reference

from course_lib.mixture.em import fit
from course_lib.mixture.gaussian import GaussianMixture

ROWS = [  # N, D, K, dtype, iterations m, repeats
    (20_000, 2, 8, torch.float64, 21, 9),
    (100_000, 64, 32, torch.float64, 3, 3),
    (100_000, 64, 32, torch.float32, 3, 3),
]
AGREE = {torch.float64: 1e-6, torch.float32: 1e-5}


def problem(N: int, D: int, K: int, dtype: torch.dtype) -> tuple[torch.Tensor, GaussianMixture]:
    """Points from a random mixture, and that mixture disturbed, where both fits start."""
    generator = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    factor = normal(K, D, D) / D**0.5
    covariances = factor @ factor.mT + 0.5 * torch.eye(D, dtype=torch.float64)
    means = normal(K, D) * 8 / (2 * D) ** 0.5  # two means are about 8 apart in any dimension
    weights = torch.softmax(0.3 * normal(K), 0)
    x, _ = GaussianMixture(weights, means, covariances).sample(N, generator=generator)
    start = GaussianMixture(
        torch.full_like(weights, 1 / K), means + 0.3 * normal(K, D), 1.5 * torch.eye(D).to(x).repeat(K, 1, 1)
    )
    return x.to(dtype), start.to(dtype)


def clock(call):
    time.sleep(0.2)  # until the idle threads of the library that ran before no longer spin
    begin = time.perf_counter()
    result = call()
    return time.perf_counter() - begin, result


def run_ours(x: torch.Tensor, start: GaussianMixture, m: int) -> tuple[float, float]:
    K = len(start.weights)
    seconds, found = clock(lambda: fit(x, K, init=start, tol=0, max_iter=m))
    return seconds, found.log_likelihood[m - 1]


def run_theirs(x: torch.Tensor, start: GaussianMixture, m: int) -> tuple[float, float]:
    model = Reference(
        len(start.weights),
        tol=0,
        max_iter=m,
        weights_init=start.weights.numpy(),
        means_init=start.means.numpy(),
        precisions_init=torch.linalg.inv(start.covariances).numpy(),
    )
    return clock(lambda: model.fit(x.numpy()))[0], float(model.lower_bound_)


def product_rate(dtype: torch.dtype, n: int = 2048) -> float:
    """Multiply-adds a second in a product of two square matrices."""
    a = torch.randn(n, n, dtype=dtype)
    return n**3 / min(clock(lambda: a @ a)[0] for _ in range(3))


def main() -> None:
    warnings.simplefilter("ignore", ConvergenceWarning)
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} PyTorch threads; ", end="")
    print(f"torch {torch.__version__}, scikit-learn {sklearn.__version__}, NumPy {np.__version__}\n")
    print("| N | D | K | dtype | sklearn ms | ours ms | ratio | Δ log-lik. | floor ms | ours/floor |")
    print("|--:|--:|--:|:--|--:|--:|--:|--:|--:|--:|", flush=True)
    double = {}  # scikit-learn's time in float64, by size
    for N, D, K, dtype, m, repeats in [ROWS[int(a) - 1] for a in sys.argv[1:]] or ROWS:
        x, start = problem(N, D, K, dtype)
        best, rate = {}, 0.0
        for _ in range(repeats):
            rate = max(rate, product_rate(dtype))
            for run in (run_theirs, run_ours):
                for iterations in (1, m):
                    timed = run(x, start, iterations)
                    best[run, iterations] = min(timed, best.get((run, iterations), timed))
        theirs, ours = ((best[r, m][0] - best[r, 1][0]) / (m - 1) * 1e3 for r in (run_theirs, run_ours))
        difference = max(abs(best[run_ours, i][1] / best[run_theirs, i][1] - 1) for i in (1, m))
        assert difference < AGREE[dtype], f"the two do not compute the same: {difference:.2g}"
        floor = 2 * N * K * D**2 / rate * 1e3
        print(
            f"| {N} | {D} | {K} | {str(dtype)[6:]} | {theirs:.1f} | {ours:.2f} | {theirs / ours:.1f} ", end=""
        )
        print(f"| {difference:.0e} | {floor:.2f} | {ours / floor:.1f} |", flush=True)
        if dtype == torch.float64:
            double[N, D, K] = theirs
        elif (N, D, K) in double:
            print(f"\nOurs in float32 to scikit-learn in float64: {double[N, D, K] / ours:.1f}")


if __name__ == "__main__":
    main()
