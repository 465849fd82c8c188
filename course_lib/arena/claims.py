r"""Sentences that claim an ordering: each is backed by the seeds, or it is not said.

A claim compares one figure of two entries of the table on one field. The runs of one seed share the noise
that samples begin with, so differences are taken seed by seed, and a t-interval says how far their mean can
be from the truth.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy import stats


class Ordering(NamedTuple):
    """By how much one entry's figure lies below another's: its mean over n seeds, and a bound from below.

    `holds` where the bound is above 0.
    """

    difference: float
    low: float
    seeds: int

    @property
    def holds(self) -> bool:
        return self.low > 0


def figures(table: list[dict], place: str, family: str, sampler: str, column: str) -> dict[int, float]:
    """A column's figure by seed, for one entry of the table.

    Raises:
        ValueError: no row is that entry's, or a seed has more than one. Runs that failed have no figures.
    """
    wanted = {"place": place, "family": family, "sampler": sampler}
    own = [row for row in table if all(row.get(name) == value for name, value in wanted.items())]
    found = {row["seed"]: float(row[column]) for row in own if column in row}
    if not own:
        raise ValueError(f"the table has no rows of {family} on {place} with sampler {sampler!r}")
    if len(found) < len([row for row in own if column in row]):
        raise ValueError(f"the table has several rows of one seed of {family} on {place}")
    return found


def below(first: dict[int, float], second: dict[int, float], *, confidence: float = 0.95) -> Ordering:
    r"""Whether the first figures lie below the second's, on the seeds that both have.

    With the differences :math:`d_i` of n seeds, their mean and their standard deviation s, the bound is
    :math:`\bar d - t_{n-1} s / \sqrt n`, where :math:`t_{n-1}` is the quantile of Student's distribution at
    the confidence: the paired t-test, one-sided (Student, 1908; Fisher, 1925). It assumes normal differences.
    Differences that are all equal, up to rounding, say nothing of their spread: then the bound is NaN, and
    nothing holds.

    Raises:
        ValueError: fewer than two seeds in common.
    """
    shared = sorted(first.keys() & second.keys())
    if len(shared) < 2:
        raise ValueError(f"first and second must have two seeds in common at least; got {len(shared)}")
    d = np.array([second[seed] - first[seed] for seed in shared])
    size = max(abs(figure[seed]) for figure in (first, second) for seed in shared)
    if np.isnan(d).any() or np.ptp(d) <= 1e-9 * size:
        return Ordering(d.mean(), math.nan, len(d))
    slack = stats.t.ppf(confidence, len(d) - 1) * d.std(ddof=1) / math.sqrt(len(d))
    return Ordering(d.mean(), d.mean() - slack, len(d))
