"""Grids, and what all samplers keep to."""

import itertools
import math
import types

import pytest
import torch
from cases import F64, PATHS, exact, generator, nonlinear, normal, oracle_of
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from course_lib.diffusion.denoiser import Denoiser
from course_lib.diffusion.path import VE, VP, Cosine, Linear
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
from course_lib.diffusion.samplers.steps import Moment, deviation, posterior_deviation
from course_lib.diffusion.tabulated import Tabulated

# Grids


def test_grid():
    assert_close(grid(4), torch.tensor([1, 0.75, 0.5, 0.25, 0], dtype=F64))
    assert_close(grid(3, start=0.2, stop=0.8), torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=F64))
    # τ_i = c i², DDIM's appendix D.2
    assert_close(grid(10, power=2.0), torch.tensor([(i / 10) ** 2 for i in range(10, -1, -1)], dtype=F64))
    for given in ({"steps": 0}, {"steps": 5, "start": 0.5, "stop": 0.5}):
        with pytest.raises(ValueError, match="steps must be at least 1, and start and stop differ"):
            grid(**given)


def test_strided():
    """As many steps as wanted, of nearly one size, and a last one from n = 1."""
    assert torch.equal(strided(9, 3), torch.tensor([9, 5, 1, 0], dtype=F64) / 9)
    assert torch.equal(strided(7, 7), torch.arange(7, -1, -1, dtype=F64) / 7)
    assert torch.equal(strided(5, 1), torch.tensor([1.0, 0.0], dtype=F64))
    for T in (*range(1, 40), 1000):
        path = Tabulated.schedule("cosine", T)
        for S in {1, 2, 3, 7, T // 3, T // 2 + 1, T - 1, T} & set(range(1, T + 1)):
            n = path.index(strided(T, S))
            assert n[0] == T and n[-1] == 0 and len(n) == S + 1
            gaps = -n.diff()
            if S > 1:
                low, high = (T - 1) // (S - 1), math.ceil((T - 1) / (S - 1))
                assert n[-2] == 1 and (gaps[:-1] >= low).all() and (gaps[:-1] <= high).all()
    for steps in (0, 11):
        with pytest.raises(ValueError, match=f"steps must be an integer from 1 to T = 10; got {steps}"):
            strided(10, steps)


@pytest.mark.parametrize("path", [VE(0.002, 80.0), VP(), Cosine(), Linear()])
def test_karras_is_equation_5(path):
    times, N, rho = karras(path, 18), 18, 7
    top = min(80.0, path.sigma(torch.ones(1, dtype=F64)).item())
    ends = top ** (1 / rho), 0.002 ** (1 / rho)
    want = [(ends[0] + i / (N - 1) * (ends[1] - ends[0])) ** rho for i in range(N)]
    assert_close(path.sigma(times), torch.tensor([*want, 0.0], dtype=F64), rtol=1e-6, atol=1e-12)


def test_karras_stays_in_the_noise_that_a_path_has():
    table = Tabulated.schedule()
    times = karras(table, 20)  # 0.002 is less than the first step's noise, 0.01
    assert 0.93 < times[0] < 0.932 and times[-2] == 0.001 and times[-1] == 0
    assert ddim(oracle_of(table), normal(3, 2), times).isfinite().all()
    with pytest.raises(ValueError, match="steps must be at least 2"):
        karras(table, 1)


# Deviations


@pytest.mark.parametrize("t, s", [(0.5, 0.49), (1.0, 0.99), (0.02, 0.01), (0.01, 0.0), (0.8, 0.3)])
def test_deviations_are_ddpms(t, s):
    r"""β and :math:`\tilde\beta` of the chain that visits only these times, by its own algebra."""
    table = PATHS["table"]
    alpha_bar = table.alpha_bar.numpy()
    now, then = alpha_bar[round(100 * t)], alpha_bar[round(100 * s)]
    beta = 1 - now / then
    at, to = moment(table, t), moment(table, s)
    assert deviation(at, to) ** 2 == pytest.approx(beta, rel=1e-9)
    assert posterior_deviation(at, to) ** 2 == pytest.approx(
        (1 - then) / (1 - now) * beta, rel=1e-9, abs=1e-18
    )


@pytest.mark.parametrize("path", [VP(), Cosine(), Linear(), VE(0.1, 3.0)])
def test_deviations_condition_a_gaussian(path):
    """Given x_0, (x_s, x_t) are jointly normal when x_t is x_s scaled plus noise."""
    for t, s in ((0.9, 0.4), (0.3, 0.25), (0.5, 0.01)):
        at, to = moment(path, t), moment(path, s)
        cross = at.a / to.a * to.b**2  # covariance of x_s and x_t given x_0
        assert deviation(at, to) ** 2 == pytest.approx(at.b**2 - cross**2 / to.b**2, rel=1e-9)
        assert posterior_deviation(at, to) ** 2 == pytest.approx(to.b**2 - cross**2 / at.b**2, rel=1e-9)


def moment(path, t):
    time = torch.tensor(t, dtype=F64)
    return Moment(t, path.a(time).item(), path.b(time).item())


# What all samplers keep to


NOISY = {
    "ddim-eta": (ddim, {"eta": 0.7}),
    "posterior": (ancestral, {}),
    "forward": (ancestral, {"variance": "forward"}),
    "reverse_sde": (reverse_sde, {}),
    "churn": (edm_heun, {"churn": 1.0}),
    "annealed": (annealed_langevin, {"steps": 2}),
    "predictor_corrector": (predictor_corrector, {}),
}
QUIET = {
    "ddim": (ddim, {}),
    "euler": (euler, {}),
    "heun": (heun, {}),
    "dpm_solver": (dpm_solver, {}),
    "edm_heun": (edm_heun, {}),
    "dopri5": (dopri5, {}),
}
SAMPLERS = QUIET | NOISY
every_sampler = pytest.mark.parametrize("name", SAMPLERS)
OPEN = torch.tensor([0.9, 0.5, 0.25, 0.125], dtype=F64)


def run(name, net, x, times=OPEN, path=None, **given):
    sampler, options = SAMPLERS[name]
    model = net if isinstance(net, nn.Module) else Denoiser(net, path or VP(), "v")
    noise = {"generator": generator(3)} if name in NOISY else {}
    return sampler(model, x, times, **(noise | options | given))


@every_sampler
def test_conduct(name):
    """The start stays, no gradient is recorded, samples follow the generator, conditions arrive."""
    x, layer, seen = normal(4, 3).requires_grad_(), nn.Linear(3, 3, dtype=F64), []

    def net(x, t, y):
        seen.append((x.dtype, t.dtype, y))
        return nonlinear(x, t) + 0.1 * layer(x)

    before = x.detach().clone()
    out = run(name, net, x, y="a cat")
    assert torch.equal(x, before) and not out.requires_grad and torch.is_grad_enabled()
    assert out.dtype == F64 and set(seen) == {(F64, F64, "a cat")}
    assert torch.equal(out, run(name, net, x, y="a cat"))


@every_sampler
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_state_is_float32_at_least(name, dtype):
    """From half a precision the run is that of the same numbers in float32."""
    x = normal(4, 3).to(dtype)
    out = run(name, nonlinear, x)
    assert out.dtype == torch.float32
    assert_close(out, run(name, nonlinear, x.float()), rtol=1e-6, atol=1e-6)


TRACED = [name for name in SAMPLERS if name not in ("annealed", "predictor_corrector")]


@pytest.mark.parametrize("name", TRACED)
def test_trajectories_and_progress(name, capsys):
    x = normal(4, 1, 2, 2)
    states, last = run(name, nonlinear, x, trajectory=True), run(name, nonlinear, x)
    assert capsys.readouterr() == ("", "")
    assert states.shape == (4, 4, 1, 2, 2) and torch.equal(states[0], x) and torch.equal(states[-1], last)
    assert all(not torch.equal(*both) for both in itertools.pairwise(states))
    if name != "dopri5":
        assert torch.equal(run(name, nonlinear, x, progress=True), last)
        out, err = capsys.readouterr()
        assert "3/3" in out and not err


@every_sampler
def test_a_network_that_returns_nan(name):
    """It is said, and in no sample passed on."""
    bad = lambda x, t: x.clone().index_fill(0, torch.tensor([1]), math.nan)
    with pytest.raises(ValueError, match=r"model returned NaN or infinity|velocity is too large"):
        run(name, bad, normal(4, 3))


@every_sampler
def test_bad_grids(name):
    grids = [[1.0, 0.5, 0.7], [0.5, 0.5], [1.5, 0.5], [0.5, -0.1], [0.5, math.nan], [500.0, 3.0]]
    grids += [[0.5]] * (name != "annealed") + [[0.1, 0.5]] * (name in NOISY)
    for times in grids:
        with pytest.raises(ValueError, match=r"times must|t must lie in \[0, 1\]"):
            run(name, nonlinear, normal(4, 3), torch.tensor(times))


class Reads(TorchDispatchMode):
    """Counts how often a number is read back from where it was computed."""

    count = 0

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        self.count += f is torch.ops.aten._local_scalar_dense.default
        return f(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "dopri5"])
@pytest.mark.parametrize("target", ["v", "edm"])
def test_a_step_reads_nothing_back(name, target):
    model, counts = Denoiser(nonlinear, VP(), target, sigma_data=0.5 if target == "edm" else None), []
    for steps in (2, 6):
        # churn reads the path's own numbers, on the processor
        churn = {"churn": 0.0} if name == "churn" else {}
        with Reads() as reads:
            run(name, model, 0.1 * normal(4, 2), grid(steps, stop=0.1), **churn)
        counts.append(reads.count)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("name", QUIET)
@pytest.mark.parametrize("kind", ["oracle", "network"])
def test_a_batch_of_several_conditions_is_what_each_is_alone(name, kind):
    model = oracle_of(VP()) if kind == "oracle" else exact(oracle_of(VP()), "v")
    x, y, close = normal(3, 2), torch.tensor([0, 1, 2]), 1e-3 if name == "dopri5" else 1e-9
    alone = torch.cat([run(name, model, x[k : k + 1], y=y[k : k + 1]) for k in range(3)])
    assert_close(run(name, model, x, y=y), alone, rtol=close, atol=close)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "dopri5"])
def test_no_samples(name):
    assert run(name, nonlinear, torch.zeros(0, 3)).shape == (0, 3)


# Many samples


def test_langevin_keeps_to_it_too():
    x = normal(4, 3).bfloat16()
    states = langevin(lambda x: -x, x, size=0.01, steps=3, generator=generator(3), trajectory=True)
    assert states.shape == (4, 4, 3) and states.dtype == torch.float32 and torch.equal(states[0], x.float())
    with pytest.raises(ValueError, match="NaN or infinity"):
        langevin(lambda x: x / 0, x, size=0.01, steps=3)


class Row(nn.Module):
    """A network with weights that cannot take an empty batch."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x, t, y=None, z=None):
        assert len(x)
        return self.layer(x.view(len(x), -1)) + y[:, None]


@pytest.mark.parametrize("n", [0, 1, 7])
def test_in_batches_is_the_whole(n):
    """Conditions are cut as the samples are; others go on as they are."""
    model, x, y = Denoiser(Row(), VP(), "v"), torch.randn(n, 2), torch.randn(n)
    got = in_batches(heun, model, x.bfloat16(), grid(3), batch_size=3, y=y, z="all")
    want = heun(model, x.bfloat16(), grid(3), y=y) if n else torch.zeros(0, 2)
    assert_close(got, want)


class Stop(Exception):
    """A process waits for the others."""


@pytest.mark.parametrize("n, several", [(7, 2), (7, 3), (1, 2)])
def test_several_processes_share_the_samples(n, several, monkeypatch):
    """All get all, in order, also where one has none; their noise differs, though they are seeded alike."""
    model, x, y = Denoiser(Row(), VP(), "v"), torch.randn(n, 2), torch.randn(n)
    shares, after, drawn = [], [], []

    def play(index, sampler, **options):
        process = types.SimpleNamespace(process_index=index, num_processes=several)
        torch.manual_seed(0)
        return in_batches(sampler, model, x, grid(3), batch_size=2, accelerator=process, **options)

    def wait(mine):
        shares.extend(mine)
        after.append(torch.rand(1).item())
        raise Stop

    def noisy(model, x, times):
        drawn.append(torch.randn(1).item())
        return x

    monkeypatch.setattr("accelerate.utils.gather_object", wait)
    for sampler, options in ((noisy, {}), (heun, {"y": y})):
        shares.clear()
        for index in range(several):
            with pytest.raises(Stop):
                play(index, sampler, **options)
    assert len(drawn) == len(set(drawn)) == sum(-(-len(s) // 2) for s in shares)
    assert len(set(after)) == 1  # all go on alike
    monkeypatch.setattr("accelerate.utils.gather_object", lambda mine: shares)
    for index in range(several):
        assert_close(play(index, heun, y=y), heun(model, x, grid(3), y=y))


def test_trajectories_are_not_joined():
    with pytest.raises(ValueError, match="trajectory must be left out"):
        in_batches(ddim, oracle_of(VP()), normal(4, 2), grid(3), batch_size=2, trajectory=True)
