"""The arena: contestants, yardstick, runner and claims."""

import csv
import itertools
import math
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

import nbformat
import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import nn

from course_lib.arena import run as runner
from course_lib.arena import yardstick
from course_lib.arena.claims import below, figures
from course_lib.arena.families import Clock, Sampler, sized
from course_lib.arena.field import Field, field, islands
from course_lib.arena.run import Entry, arena, read, write
from course_lib.arena.yardstick import FAMILIES, draw, enter, learn, measure, quality, rows
from course_lib.book import profiles
from course_lib.diffusion.denoiser import BaseDenoiser
from course_lib.diffusion.guidance import Clipped
from course_lib.diffusion.oracles import MixtureOracle
from course_lib.diffusion.target import Pair

LEARNED = [name for name in FAMILIES if name not in ("factorized Gaussian", "mixture", "training set")]
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def little():
    """Networks of the smoke profile's size, trained and measured even less."""
    whole = yardstick.budget

    def budget(place, run):
        sizes = dict(samples=60, held=20) if place.flat else dict(samples=24, held=2)
        return whole(place, run)._replace(seconds=0.1, **sizes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yardstick, "budget", budget)
        yield


@pytest.fixture(scope="module")
def trained(little):
    """Every family on both fields, trained for a moment."""
    found = {}

    def get(family, place):
        if (family, place) not in found:
            model = enter(family, place, profiles.start("smoke", 0))
            found[family, place] = model, learn(model)
        return found[family, place]

    return get


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


# Fields


def test_points_are_the_truths():
    place, truth = field("points"), islands()
    assert place.shape == (2, 1, 1) and place.dims == 2 and place.flat
    assert place.train.abs().max() < 1 and place.test.abs().max() < 1
    # a linear map of a mixture is a mixture: its first two moments are known
    rows_ = torch.cat([place.train, place.test]).flatten(1).double()
    mean = truth.weights @ truth.means
    second = torch.einsum("k,kij->ij", truth.weights, truth.covariances)
    second += torch.einsum("k,ki,kj->ij", truth.weights, truth.means - mean, truth.means - mean)
    error = second.diagonal().sqrt() / len(rows_) ** 0.5
    assert ((rows_.mean(0) - mean).abs() < 5 * error).all()
    assert torch.allclose(torch.cov(rows_.T), second, atol=0.02)


def test_digits_fill_their_cells():
    place = field("digits")
    assert not place.flat and place.dims == 64 and place.levels == 17
    assert len(place.train) == 1437 and len(place.test) == 360
    cells = (place.train + 1) / 2 * 17
    assert cells.min() >= 0 and cells.max() <= 17
    parts = (cells - cells.floor()).flatten().numpy()
    assert stats.kstest(parts, "uniform").pvalue > 1e-4  # uniform within a cell
    assert place.centres.shape == (50, 64)


def test_unknown_names_are_refused():
    run = profiles.start("smoke", 0)
    with pytest.raises(ValueError, match="dataset must be one of"):
        field("cats")
    with pytest.raises(ValueError, match="family must be one of"):
        enter("transformer", "points", run)


# Clock and sizes


def test_clock_counts_steps_and_not_looks():
    clock, now = Clock(1.0, CPU), itertools.count()
    hand = [0.0]
    clock.now = lambda: hand[0]

    def steps():
        while True:
            hand[0] += 0.25
            yield next(now)

    seen = []
    for spent in clock.take(steps()):
        seen.append(spent)
        hand[0] += 100.0  # a long look
    assert seen == [0.25, 0.5, 0.75, 1.0] and clock.past(1.0)


def test_clock_ends_with_the_steps():
    clock = Clock(1e9, CPU)
    assert len(list(clock.take(iter(range(3))))) == 4  # the last says that there is no more
    assert not clock.past(0.5)


def test_clock_waits_for_a_gpu_which_works_on_while_the_program_goes_on(monkeypatch):
    clock_, queued = [0.0], [0.0]

    def synchronize(device):
        clock_[0] += queued[0]
        queued[0] = 0.0

    monkeypatch.setattr(torch.accelerator, "synchronize", synchronize)
    monkeypatch.setattr(time, "perf_counter", lambda: clock_[0])
    clock = Clock(1.0, torch.device("cuda"))

    def steps():  # each only hands work of a quarter of a second over
        for _ in range(20):
            queued[0] += 0.25
            yield

    seen = []
    for spent in clock.take(steps()):
        seen.append(spent)
        queued[0] += 10.0  # so does a look
    assert seen == [0.25, 0.5, 0.75, 1.0]


def test_sized_is_the_nearest_and_refuses_a_miss():
    build = lambda width: [nn.Linear(width, width, bias=False)]
    (net,) = sized(build, 10_000)
    assert net.weight.shape == (100, 100) and net.weight.device == CPU
    assert sized(build, 10_100)[0].weight.shape == (100, 100)  # 101 would miss by 101, 100 by 100
    with pytest.raises(ValueError, match="within a fifth of 400"):
        sized(build, 400, multiple=32)


# Contestants


@pytest.mark.parametrize("place", ["points", "digits"])
@pytest.mark.parametrize("family", LEARNED)
def test_budget_of_parameters(trained, family, place):
    model, _ = trained(family, place)
    allowed = yardstick.budget(model.field, model.run).parameters
    assert abs(model.parameters() / allowed - 1) <= 0.2


@pytest.mark.parametrize("place", ["points", "digits"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows(trained, family, place, monkeypatch):
    model, looks = trained(family, place)
    if place == "digits":  # the other samplers differ in the number of steps
        name, sampler = next(iter(model.samplers().items()))
        monkeypatch.setattr(model, "samplers", lambda: {name: sampler})
    assert len(looks.seconds) == len(looks.quality) > 0 and np.isfinite(looks.quality).all()
    assert looks.seconds == sorted(looks.seconds) and looks.shares == sorted(set(looks.shares))
    assert looks.shares[-1] == 1.0 and set(looks.shares) <= set(yardstick.MARKS)
    table = list(rows(model, looks))
    assert [row["sampler"] for row in table] == list(model.samplers())
    for row in table:
        images = place == "digits"
        assert all(math.isfinite(row[name]) for name in ("w2", "mmd", "precision", "recall", "nearest"))
        assert math.isfinite(row["frechet"]) == math.isfinite(row["kid"]) == images
        assert math.isfinite(row["nll"]) == bool(model.density) == bool(row["nll_kind"])
    x, again = (draw(model, row["sampler"], 20) for _ in range(2))
    assert x.shape == (20, *model.field.shape) and torch.equal(x, again)
    assert place == "points" or x.abs().max() <= 1


@pytest.mark.parametrize("family", ["DDPM", "score", "flow", "flow, OT", "reflow"])
def test_evaluations_are_counted_right(trained, family):
    model, _ = trained(family, "points")
    calls = []
    handle = model.smooth.module.net.register_forward_hook(lambda *_: calls.append(1))
    for sampler in model.samplers().values():
        calls.clear()
        sampler.draw(8, gen())
        assert len(calls) == sampler.evaluations
    handle.remove()


def test_evaluations_of_the_latent_families(trained):
    for place in ("points", "digits"):
        model, _ = trained("VQ-VAE", place)
        calls, nets = [], (model.sampled.net, model.model.decoder)
        handles = [net.register_forward_hook(lambda *_, seen=calls: seen.append(1)) for net in nets]
        sampler = model.samplers()["means"]
        sampler.draw(8, gen())
        assert len(calls) == sampler.evaluations == (3 if place == "points" else 5)
        for handle in handles:
            handle.remove()


def test_mixtures_density_is_that_of_a_mixture_in_all_dimensions(trained):
    model, _ = trained("mixture", "digits")
    x = model.field.test[:20].flatten(1).double()
    A, mixture = model.axes.numpy(), model.found.mixture
    rest = model.rest.item() ** 2 * (np.eye(64) - A.T @ A)
    weights, means, covariances = (v.numpy() for v in (mixture.weights, mixture.means, mixture.covariances))
    parts = []
    for w, m, S in zip(weights, means, covariances, strict=True):
        normal = stats.multivariate_normal(model.mean.numpy() + m @ A, A.T @ S @ A + rest)
        parts.append(np.log(w) + normal.logpdf(x.numpy()))
    want = np.logaddexp.reduce(parts)
    got = model.log_density(model.field.test[:20], gen())
    assert np.allclose(got, want, rtol=1e-8)
    # samples follow it: their mean and their variance across the kept directions
    y = model.samplers()["exact"].draw(20_000, gen()).flatten(1).double() - model.mean
    across = (y - y @ model.axes.T @ model.axes).square().sum(1).mean()
    assert abs(across / (40 * model.rest**2) - 1) < 0.01


def test_floor_is_scipys_normal(trained):
    model, _ = trained("factorized Gaussian", "digits")
    x = model.field.train.flatten(1).double().numpy()
    want = stats.norm(x.mean(0), x.std(0, ddof=1)).logpdf(x[:5]).sum(1)
    assert np.allclose(model.log_density(model.field.train[:5], gen()), want, rtol=1e-4)
    (row,) = rows(model, learn(model))
    held = model.field.test[: yardstick.budget(model.field, model.run).held].flatten(1).double().numpy()
    nats = stats.norm(x.mean(0), x.std(0, ddof=1)).logpdf(held).sum(1).mean()
    # a cell has the width 2/17: so many bits a value does its number cost
    assert row["nll"] == pytest.approx(-(nats / 64 + math.log(2 / 17)) / math.log(2), rel=1e-4)


class Exact(BaseDenoiser):
    """The truth's denoiser in the place of a trained one."""

    def __init__(self, path):
        super().__init__(path)
        self.oracle = MixtureOracle(islands(), path)

    def predict(self, x, t):
        t = torch.as_tensor(t, dtype=torch.float64)
        found = self.oracle.predict(x.flatten(1).double(), t)
        return Pair(*(v.to(x.dtype).view_as(x) for v in found))


def exact(trained, family):
    """The log-densities that a family finds, less the truth's, where its denoiser is the truth's."""
    model, _ = trained(family, "points")
    kept = model.smooth.module
    model.smooth.module = Exact(kept.path)
    x = islands().sample(50, generator=gen())[0].float().view(-1, 2, 1, 1)
    found = model.log_density(x, gen()).double()
    model.smooth.module = kept
    return found - islands().log_prob(x.flatten(1).double())


def test_densities_with_the_exact_denoiser(trained):
    assert exact(trained, "score").abs().mean() < 0.1
    assert exact(trained, "flow").abs().mean() < 0.1
    gap = exact(trained, "DDPM")
    assert -1.0 < gap.mean() < 5 * gap.std() / 50**0.5  # a bound from below, and not far


def test_ddpm_clips_when_it_samples_and_not_in_its_bound(trained):
    model, _ = trained("DDPM", "points")
    kept, x = model.smooth.module, model.field.test[:4]

    class Far(BaseDenoiser):
        """Says that all data are at 3."""

        def predict(self, x, t):
            at = self.path.expand(t, x)
            x0 = torch.full_like(x, 3.0)
            return Pair(x0, (x - self.path.a(at) * x0) / self.path.b(at))

    model.smooth.module = Far(kept.path)
    for name in ("DDIM, 10", "ancestral, 10"):
        x_ = model.samplers()[name].draw(3, gen())
        torch.testing.assert_close(x_, torch.ones(3, 2, 1, 1), rtol=0, atol=1e-5)
    far = model.log_density(x, gen())
    model.smooth.module = Clipped(Far(kept.path), 1.0)
    near = model.log_density(x, gen())
    model.smooth.module = kept
    assert (far < 2 * near).all()  # as x is further from 3 than from 1


def test_bound_of_codes_is_below_the_sum_over_all_codes(trained):
    model, _ = trained("VQ-VAE", "points")
    x = model.field.test[:30]
    k = torch.cartesian_prod(torch.arange(64), torch.arange(64)).view(-1, 1, 2)
    with torch.no_grad():
        prior, means = model.sampled.log_prob(k), model.model.decode(k).flatten(1)
    apart = stats.norm(means[None].numpy(), model.deviation.item()).logpdf(x.flatten(1)[:, None].numpy())
    want = np.logaddexp.reduce(prior.numpy() + apart.sum(2), axis=1)
    assert (model.log_density(x, gen()).numpy() <= want + 1e-4).all()


@pytest.mark.parametrize("family", ["mixture", "VAE", "VQ-VAE", "GAN", "score"])
def test_larger_images(family):
    """The shapes of MNIST, as in the full profile; DDPM's and the flows' network is the score's."""
    noise = torch.rand(300, 1, 28, 28, generator=gen()) * 2 - 1
    features = lambda x: x.mean(1).flatten(1)[:, ::97]
    place = Field("mnist", noise[:200], noise[200:], features, features(noise[:5]), 1.0, None, 256)
    model = FAMILIES[family](place, profiles.start("smoke", 0), 180_000)
    clock = Clock(0.01, CPU)
    for _ in clock.take(model.training(clock)):
        pass
    assert draw(model, next(iter(model.samplers())), 2).shape == (2, 1, 28, 28)
    if model.density:
        assert torch.isfinite(model.log_density(place.test[:2], gen())).all()


def by_heun(net, x):
    """From time 1 to 0 in ten steps of Heun's method, the last one of Euler's, written out."""
    times = torch.linspace(1, 0, 11, dtype=torch.float64).pow(1.25).to(x)
    for t, s in itertools.pairwise(times):
        u = net(x, t.expand(len(x)))
        if s > 0:
            u = (u + net(x + (s - t) * u, s.expand(len(x)))) / 2
        x = x + (s - t) * u
    return x


def weights(module):
    return [p.detach().clone() for p in module.parameters()]


@pytest.mark.parametrize("slow", [False, True])
def test_reflow_learns_its_first_flows_pairs_from_where_that_ended(slow):
    model = enter("reflow", "points", profiles.start("smoke", 0))
    clock, told, learn_ = Clock(1.0, CPU), [], model.learn

    def spy(loss, tensors):
        told.append((tensors, weights(model.model), getattr(model, "smooth", None)))
        yield from learn_(loss, tensors)

    model.learn = spy
    for _ in model.training(clock):
        clock.spent += 0.01 if clock.spent < 2 / 3 or not slow else 0.2
        if len(told) == 2:
            break
    (first, *_), ((data, noise), begin, teacher) = told
    assert torch.equal(first[0], model.field.train)
    assert len(data) == len(noise) == (256 if slow else 2000)  # no more pairs than there is time for
    assert all(torch.equal(*pair) for pair in zip(begin, weights(teacher.module), strict=True))
    with torch.no_grad():
        torch.testing.assert_close(by_heun(teacher.module.net, noise[:50]), data[:50], rtol=1e-4, atol=1e-5)


def test_optimal_coupling_shortens_the_way():
    model, ways = enter("flow, OT", "points", profiles.start("smoke", 0)), []
    couple = model.couple

    def spy(x0, eps, *rest):
        found = couple(x0, eps, *rest)
        ways.append([(x0 - e).square().sum() for e in (eps, found)])
        return found

    model.couple = spy
    for _, _ in zip(range(5), model.training(Clock(1.0, CPU)), strict=False):
        pass
    assert len(ways) == 5 and all(after < 0.9 * before for before, after in ways)


def test_noise_under_way_is_not_the_start_again():
    model, given = enter("score", "points", profiles.start("smoke", 0)), gen(3)
    start = torch.randn(4000, generator=given)
    later = torch.randn(4000, generator=model.on_device(given))
    again = torch.randn(4000, generator=model.on_device(gen(3)))
    for a, b in ((start, later), (start, again)):
        assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 5 / 4000**0.5


# Yardstick


def test_measure_of_the_truth_and_of_memory():
    place = field("points")
    fresh = place.truth.sample(500, generator=gen(1))[0].view(-1, 2, 1, 1)
    found = measure(place, fresh)
    assert found["modes"] == 1 and found["near_modes"] > 0.97 and abs(found["mmd"]) < 0.01
    assert 0.7 < found["nearest"] < 1.4 and found["precision"] > 0.85 and found["recall"] > 0.85
    own = measure(place, place.train[:500])
    assert own["nearest"] == 0 and own["copies"] == 1 and found["copies"] < 0.03
    half = measure(place, torch.cat([place.train[:200], fresh[:300]]))
    assert 0.4 <= half["copies"] < 0.43 and half["nearest"] > 0  # a median would not see them
    # W2 by SciPy's assignment in the definition
    cost = cdist(fresh.flatten(1).double(), place.test[:500].flatten(1).double(), "sqeuclidean")
    pairs = linear_sum_assignment(cost)
    assert found["w2"] == pytest.approx(math.sqrt(cost[pairs].mean()), rel=1e-9)


def test_one_mode_is_one_mode():
    place = field("points")
    found = measure(place, place.centres[0].expand(300, 2).reshape(-1, 2, 1, 1).contiguous())
    assert found["modes"] == pytest.approx(1 / 9) and found["near_modes"] == 1 and found["recall"] < 0.1


def burn(seconds):
    """Keep the processor busy."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    return 1.0


def test_looks_do_not_cost_time(monkeypatch):
    monkeypatch.setattr(yardstick, "quality", lambda model: burn(0.05))
    model = enter("flow", "points", profiles.start("smoke", 0))
    looks = learn(model)
    allowed = yardstick.budget(model.field, model.run).seconds
    assert allowed <= looks.seconds[-1] < 2 * allowed
    assert len(looks.seconds) <= len(yardstick.MARKS)


def test_sampling_is_timed_by_the_sample():
    model = enter("factorized Gaussian", "digits", profiles.start("smoke", 0))
    looks, exact = learn(model), model.samplers()["exact"].draw

    def slow(n, generator):
        burn(0.002 * n)
        return exact(n, generator)

    model.samplers = lambda: {"exact": Sampler(0, slow)}
    (row,) = rows(model, looks)
    assert 2 <= row["sample_ms"] < 3


def test_quality_is_the_rows(trained):
    model, looks = trained("mixture", "digits")
    assert quality(model) == pytest.approx(next(rows(model, looks))["frechet"])


def test_distances_are_of_several_draws(trained):
    model, looks = trained("mixture", "points")
    count, found = yardstick.budget(model.field, model.run).samples, []
    for turn in (0, 1):
        x = draw(model, "exact", count, turn).flatten(1).double()
        test = model.field.test[turn * count :][:count].flatten(1).double()
        cost = cdist(x, test, "sqeuclidean")
        found.append(math.sqrt(cost[linear_sum_assignment(cost)].mean()))
    assert found[0] != found[1] and next(rows(model, looks))["w2"] == pytest.approx(np.mean(found))


# Runner

FEW = dict(fields=("points",), families=("factorized Gaussian", "training set", "flow"), seeds=2)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arena")
    return folder, arena("smoke", folder=folder, **FEW)


def test_arena_makes_one_table(done):
    _, results = done
    assert [row["family"] for row in results.rows[:2]] == ["factorized Gaussian"] * 2
    assert {row["seed"] for row in results.rows} == {100, 101} and all(
        r["status"] == "ok" for r in results.rows
    )
    for name in ("profile", "code", "commit", "torch", "python", "machine", "parameters", "train_seconds"):
        assert all(name in row or name == "commit" for row in results.rows), name
    with (results.folder / "rows.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(results.rows)
    notebook = nbformat.read(results.folder / "points-flow-101.ipynb", 4)
    outputs = [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
    assert any("svg" in o.get("data", {}).get("text/html", "") for o in outputs)
    assert {look["family"] for look in results.looks} == {"factorized Gaussian", "training set", "flow"}


def test_arena_runs_only_what_is_missing(done):
    folder, before = done
    stamps = {path: path.stat().st_mtime_ns for path in before.folder.glob("*.ipynb")}
    (before.folder / "points-flow-100.csv").unlink()
    after = arena("smoke", folder=folder, **FEW)
    changed = [path.name for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp]
    assert changed == ["points-flow-100.ipynb"] and len(after.rows) == len(before.rows)
    exactly = lambda results: [r["w2"] for r in results.rows if r["family"] == "training set"]
    assert exactly(after) == exactly(before)


def test_a_failure_is_a_row_and_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("data").write_text("no folder")  # MNIST cannot be put there
    few = dict(families=("factorized Gaussian",), seeds=1)
    found = arena("smoke", folder="runs", fields=("points", "mnist"), **few).rows
    assert [row["status"] == "ok" for row in found] == [True, False]
    assert found[1]["status"].startswith("RuntimeError: dataset 'mnist'") and "w2" not in found[1]
    again = arena("smoke", folder="runs", fields=("mnist",), **few).rows
    assert again[0]["status"] == found[1]["status"]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are found in /proc")
def test_a_killed_run_is_a_row_and_the_others_go_on(tmp_path):
    over, killed = threading.Event(), []

    def kill_first():
        while not (over.is_set() or killed):
            server = multiprocessing.forkserver._forkserver._forkserver_pid
            listed = Path(f"/proc/{server}/task/{server}/children")
            for pid in listed.read_text().split() if listed.exists() else ():
                os.kill(int(pid), signal.SIGKILL)
                killed.append(pid)
                return
            time.sleep(0.002)

    thread = threading.Thread(target=kill_first)
    thread.start()
    few = dict(fields=("points",), families=("flow", "factorized Gaussian"), seeds=1)
    try:
        found = arena("smoke", folder=tmp_path, workers=1, **few).rows
    finally:
        over.set()
        thread.join()
    assert killed and [row["family"] for row in found if row["status"] == "killed by SIGKILL"] == ["flow"]
    assert [row["status"] for row in found if row["family"] == "factorized Gaussian"] == ["ok"]


def test_a_script_that_calls_the_arena_is_not_run_again_by_its_processes(tmp_path, monkeypatch):
    (tmp_path / "script.py").write_text("open(__file__ + '.ran', 'w')")
    main = ModuleType("__main__")
    main.__file__ = str(tmp_path / "script.py")
    monkeypatch.setitem(sys.modules, "__main__", main)
    few = dict(fields=("points",), families=("factorized Gaussian",), seeds=1)
    assert arena("smoke", folder=tmp_path, **few).rows[0]["status"] == "ok"
    assert not (tmp_path / "script.py.ran").exists()


def test_a_run_that_cannot_write_is_a_row(tmp_path):
    here = tmp_path / f"smoke-{runner.fingerprint()}"
    (here / "points-flow-100.ipynb").mkdir(parents=True)  # where the notebook should go
    families = ("flow", "training set")
    found = arena("smoke", folder=tmp_path, fields=("points",), families=families, seeds=1).rows
    assert {row["family"]: row["status"] for row in found} == {
        "flow": "ended with exit code 1",
        "training set": "ok",
    }


def test_arena_refuses():
    for bad, said in (
        ({"fields": ("points", "cats")}, "fields must be among .* got cats"),
        ({"families": ("GAN", "flows")}, "families must be among .* got flows"),
        ({"seeds": 1.5}, "seeds must be an integer"),
        ({"seeds": 0}, "seeds must be an integer"),
        ({"workers": -1}, "workers must be an integer"),
        ({"workers": 0}, "workers must be an integer"),
    ):
        with pytest.raises(ValueError, match=said):
            arena("smoke", folder="never", **bad)
    assert not Path("never").exists()


def test_without_git_there_is_no_commit(monkeypatch, tmp_path):
    assert runner._commit()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert runner._commit() == ""


def test_tables_come_back(tmp_path):
    table = [{"a": 1, "b": "x, y", "c": math.nan}, {"a": -2.5, "d": "é"}]
    write(tmp_path / "t.csv", table)
    first, second = read(tmp_path / "t.csv")
    assert first["a"] == 1 and first["b"] == "x, y" and math.isnan(first["c"]) and "d" not in first
    assert second == {"a": -2.5, "d": "é"} and read(tmp_path / "none.csv") == []
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


def test_names_of_files_differ():
    names = [Entry("points", family, seed).name for family in FAMILIES for seed in (0, 1)]
    assert len(set(names)) == len(names) and not any(set(name) & set(" ,/") for name in names)


def test_fingerprint_knows_the_library(tmp_path, monkeypatch):
    before = runner.fingerprint()
    copy = tmp_path / "course_lib"
    copy.mkdir()
    for path in runner.LIBRARY.rglob("*"):
        if path.suffix in (".py", ".pt", ".ipynb"):
            (copy / path.relative_to(runner.LIBRARY)).parent.mkdir(parents=True, exist_ok=True)
            (copy / path.relative_to(runner.LIBRARY)).write_bytes(path.read_bytes())
    monkeypatch.setattr(runner, "LIBRARY", copy)
    assert runner.fingerprint() == before
    (copy / "gan.py").write_text("pass")
    assert runner.fingerprint() != before
    with pytest.raises(RuntimeError, match="have changed since their import"):
        arena("smoke", folder=tmp_path / "runs", **FEW)
    assert not (tmp_path / "runs").exists()


def test_a_cut_table_is_not_a_finished_run(done, tmp_path):
    _, results = done
    whole = (results.folder / "points-training-set-100.csv").read_bytes()
    entry, path = Entry("points", "training set", 100), tmp_path / "points-training-set-100.csv"
    path.write_bytes(whole)
    assert runner.finished(tmp_path, entry)
    size = len(whole.rstrip())
    for length in (*range(0, size, 17), *range(size - 20, size)):
        path.write_bytes(whole[:length])
        assert not runner.finished(tmp_path, entry), length


def test_a_run_that_fails_when_measured_leaves_no_figures(trained, tmp_path, monkeypatch):
    def fails(model, looks):
        raise FloatingPointError("no number")

    monkeypatch.setattr(runner, "rows", fails)
    with pytest.raises(FloatingPointError):
        runner.save(*trained("mixture", "points"), tmp_path, Entry("points", "mixture", 0))
    assert not list(tmp_path.iterdir())


def _write_often(path):
    for n in range(50):
        write(path, [{"n": n, "text": "x" * 1000}])
        assert len(read(path)) == 1


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_two_processes_may_write_one_table(tmp_path):
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=_write_often, args=(tmp_path / "t.csv",)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]


# Claims


def test_below_is_the_paired_t_test():
    rng = np.random.default_rng(0)
    for _ in range(200):
        n = rng.integers(2, 6)
        a, b = rng.normal(size=(2, n)) + np.array([[0], [rng.normal()]])
        found = below(dict(enumerate(a)), dict(enumerate(b)))
        p = stats.ttest_rel(a, b, alternative="less").pvalue
        assert found.holds == (p < 0.05) and found.seeds == n
        interval = stats.ttest_rel(b, a, alternative="greater").confidence_interval(0.95)
        assert found.low == pytest.approx(interval.low)


def test_below_refuses_and_does_not_hold_where_figures_miss():
    assert not below({0: 1.0, 1: math.nan}, {0: 2.0, 1: 3.0}).holds
    assert not below({0: 0.1, 1: 0.2}, {0: 1.1, 1: 1.2}).holds  # no spread to judge by
    assert not below({0: 0.8, 1: 0.6}, {0: 0.82, 1: 0.62}).holds  # nor here, but for rounding
    with pytest.raises(ValueError, match="two seeds in common"):
        below({0: 1.0, 1: 2.0}, {1: 3.0, 2: 4.0})


def test_figures_by_seed(done):
    _, results = done
    found = figures(results.rows, "points", "training set", "drawn", "w2")
    assert set(found) == {100, 101}
    with pytest.raises(ValueError, match="no rows of GAN"):
        figures(results.rows, "points", "GAN", "generator", "w2")
    with pytest.raises(ValueError, match="several rows"):
        figures(results.rows * 2, "points", "training set", "drawn", "w2")


def test_the_run_notebook_is_stripped():
    notebook = nbformat.read(runner.NOTEBOOK, 4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells)
