"""The training loop: against a loop by hand, killed and resumed, in two processes, and with bad input."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from course_lib.training.loop import TrainConfig, average, train
from tests.train_script import loss, problem

SCRIPT = Path(__file__).with_name("train_script.py")
CONFIG = TrainConfig(steps=12, batch_size=32, lr=1e-2)


def run(model, tensors, config=CONFIG, **options):
    return list(train(model, loss, tensors, config, **options))


def start(folder, steps=40, width=16, random="random"):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[1])}
    command = [sys.executable, SCRIPT, folder, str(steps), str(width), random]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def end(folder):
    return torch.load(folder / "end.pt", weights_only=True)


def test_the_script_in_the_book_runs_in_two_processes(tmp_path):
    text = (SCRIPT.parents[1] / "book" / "running.md").read_text("utf8")
    (code,) = re.findall(r"```python\n(from torch import nn.*?)```", text, re.S)
    (tmp_path / "script.py").write_text(code)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    added = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[1]), "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*launch, "script.py"], cwd=tmp_path, env=os.environ | added, capture_output=True, text=True
    )
    assert done.returncode == 0 and "300/300" in done.stdout, done.stdout + done.stderr
    saved = torch.load(tmp_path / "vae.pt", weights_only=True)
    assert saved["step"] == 300 and len(saved["random"]) == 2


# What a step does


def test_the_same_as_a_loop_by_hand():
    model, tensors = problem()
    torch.manual_seed(5)
    steps = run(model, tensors, replace(CONFIG, warmup=4, clip=0.5, weight_decay=0.1))
    assert [s.step for s in steps] == list(range(1, 13)) and steps[-1].seconds > 0
    other, _ = problem()
    optimizer = torch.optim.AdamW(other.parameters(), lr=1.0, weight_decay=0.1)
    torch.manual_seed(5)
    for step in range(12):
        epoch, batch = divmod(step, 3)
        order = torch.randperm(96, generator=torch.Generator().manual_seed(epoch))
        value = loss(other, *(t[order[32 * batch : 32 * batch + 32]] for t in tensors))
        assert value.item() == steps[step].loss
        optimizer.param_groups[0]["lr"] = 1e-2 * min(1, (step + 1) / 4)
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(other.parameters(), 0.5)
        optimizer.step()
    assert equal(model.state_dict(), other.state_dict())


def test_every_row_comes_once_an_epoch_in_a_new_order():
    seen = []
    count = torch.arange(8.0)[:, None]

    def note(model, rows):
        seen.append(rows[:, 0].tolist())
        return model(rows).square().mean()

    list(train(nn.Linear(1, 1), note, [count], TrainConfig(steps=8, batch_size=4)))
    epochs = [seen[i] + seen[i + 1] for i in range(0, 8, 2)]
    assert all(sorted(e) == list(range(8)) for e in epochs) and len({tuple(e) for e in epochs}) > 1


def test_the_average_follows_its_recursion_and_copies_buffers():
    model, tensors = problem()
    ema, wanted = average(model, 0.8), None
    for _ in train(model, loss, tensors, CONFIG, ema=ema):
        now = {k: v.detach().double().numpy().copy() for k, v in model.named_parameters()}
        wanted = now if wanted is None else {k: 0.8 * wanted[k] + 0.2 * now[k] for k in now}
        for k, v in ema.module.named_parameters():
            np.testing.assert_allclose(v.detach(), wanted[k], rtol=1e-5, atol=1e-6)
        for own, copied in zip(model.buffers(), ema.module.buffers(), strict=True):
            assert torch.equal(own, copied)


def test_a_compiled_model_leaves_plain_names_in_the_checkpoint(tmp_path, monkeypatch):
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda m: compile_(m, backend="eager"))
    model, tensors = problem()
    run(model, tensors, replace(CONFIG, compile=True), checkpoint=tmp_path / "c.pt")
    saved = torch.load(tmp_path / "c.pt", weights_only=True)
    assert saved["model"].keys() == problem()[0].state_dict().keys()


def test_channels_last_computes_the_same():
    torch.manual_seed(0)
    images = torch.randn(16, 3, 8, 8)
    square = lambda model, x: model(x).square().mean()
    ends = []
    for last in (False, True):
        torch.manual_seed(1)
        model = nn.Conv2d(3, 4, 3)
        config = TrainConfig(steps=5, batch_size=8, channels_last=last)
        ends.append([s.loss for s in train(model, square, [images], config)])
    np.testing.assert_allclose(*ends, rtol=1e-5)


def test_the_bar_shows_loss_and_rate(capsys):
    run(*problem(), progress=True)
    said = capsys.readouterr().out
    assert "loss=" in said and "it/s" in said and "12/12" in said


# Killed and resumed


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_run_ends_with_the_same_bits(tmp_path, seed):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir(), broken.mkdir()
    assert start(whole).wait() == 0
    rng = np.random.default_rng(seed)
    for target in sorted(rng.integers(3, 40, 2)):  # kill it once its checkpoint is about so far
        process = start(broken)
        while process.poll() is None:
            try:
                if torch.load(broken / "run.pt", weights_only=True)["step"] >= target:
                    process.send_signal(signal.SIGKILL)
            except FileNotFoundError:
                pass
        process.wait()
    assert start(broken).wait() == 0
    assert equal(end(whole)["model"], end(broken)["model"]) and equal(end(whole)["ema"], end(broken)["ema"])


def test_a_run_killed_while_it_writes_keeps_the_old_checkpoint(tmp_path):
    """A wide network, whose checkpoint takes long to write."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir(), broken.mkdir()
    assert start(whole, steps=12, width=200_000).wait() == 0
    process = start(broken, steps=12, width=200_000)
    while process.poll() is None:
        if (broken / "run.pt").exists() and list(broken.glob(".run.pt.*")):
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.001)
    process.wait()
    assert list(broken.glob(".run.pt.*")), "the kill came too late: nothing was being written"
    assert torch.load(broken / "run.pt", weights_only=True)["step"] in (3, 6, 9)
    assert start(broken, steps=12, width=200_000).wait() == 0
    assert equal(end(whole)["model"], end(broken)["model"])
    assert not list(broken.glob(".run.pt.*"))


def test_a_resumed_run_may_be_longer(tmp_path):
    (model, tensors), (other, _) = problem(), problem()
    torch.manual_seed(5)
    whole = run(model, tensors)
    torch.manual_seed(5)
    first = run(other, tensors, replace(CONFIG, steps=5), checkpoint=tmp_path / "c.pt")
    torch.manual_seed(6)
    second = run(other, tensors, checkpoint=tmp_path / "c.pt")
    assert [s.loss for s in whole] == [s.loss for s in first + second] and second[0].step == 6
    assert equal(model.state_dict(), other.state_dict())
    assert run(other, tensors, checkpoint=tmp_path / "c.pt") == []


def test_two_processes_give_the_losses_of_one(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    assert start(one, random="fixed").wait() == 0
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "PYTHONPATH": str(SCRIPT.parents[1]),
    }
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*launch, SCRIPT, two, "40", "16", "fixed"], env=environment, check=True)
    np.testing.assert_allclose(end(one)["losses"], end(two)["losses"], atol=1e-5)
    assert torch.load(two / "run.pt", weights_only=True)["model"].keys() == end(one)["model"].keys()


# Bad input


def test_a_loss_that_is_no_number_stops_at_its_step_and_spares_the_checkpoint(tmp_path):
    model, tensors = problem()
    calls = []

    def breaks(model, x, y):
        calls.append(1)
        return loss(model, x, y) * (torch.nan if len(calls) == 8 else 1)

    with pytest.raises(FloatingPointError, match="the loss is nan at step 8"):
        list(train(model, breaks, tensors, replace(CONFIG, save_every=7), checkpoint=tmp_path / "c.pt"))
    assert all(v.isfinite().all() for v in model.parameters())
    assert torch.load(tmp_path / "c.pt", weights_only=True)["step"] == 7


def test_a_gradient_that_is_no_number_is_not_taken():
    model = nn.Linear(1, 1, bias=False)
    before = model.weight.detach().clone()
    root_of_zero = lambda model, x: (model(x) * 0).abs().sqrt().mean()
    with pytest.raises(FloatingPointError, match="the gradient is not finite at step 1"):
        list(train(model, root_of_zero, [torch.ones(4, 1)], TrainConfig(steps=2, batch_size=4)))
    assert torch.equal(model.weight, before)


@pytest.fixture
def saved(tmp_path):
    model, tensors = problem()
    run(model, tensors, replace(CONFIG, steps=3), checkpoint=tmp_path / "c.pt")
    return tmp_path / "c.pt"


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused_and_left_alone(saved, keep):
    whole = saved.read_bytes()
    part = whole[: int(keep * len(whole)) if isinstance(keep, float) else keep]
    saved.write_bytes(part)
    with pytest.raises(ValueError, match=r"checkpoint .*c\.pt cannot be read"):
        run(*problem(), checkpoint=saved)
    assert saved.read_bytes() == part


@pytest.mark.parametrize("thing", [{"model": 1}, [1, 2], torch.zeros(3)])
def test_a_foreign_checkpoint_is_refused(tmp_path, thing):
    torch.save(thing, tmp_path / "c.pt")
    with pytest.raises(ValueError, match="was not written by this course's training loop"):
        run(*problem(), checkpoint=tmp_path / "c.pt")


def test_a_checkpoint_that_runs_code_is_refused(tmp_path):
    torch.save(nn.Linear(1, 1), tmp_path / "c.pt")  # a pickled class, which a safe load refuses
    with pytest.raises(ValueError, match="cannot be read"):
        run(*problem(), checkpoint=tmp_path / "c.pt")


def test_a_checkpoint_of_another_run_is_refused(saved):
    model, tensors = problem()
    with pytest.raises(ValueError, match=r"made with lr=0\.01, not 0\.02"):
        run(model, tensors, replace(CONFIG, lr=0.02), checkpoint=saved)
    with pytest.raises(ValueError, match="differ in ema"):
        run(model, tensors, ema=average(model, 0.9), checkpoint=saved)
    with pytest.raises(ValueError, match=r"(?s)belongs to another model: .*size mismatch"):
        run(problem(width=17)[0], tensors, checkpoint=saved)


@pytest.mark.parametrize(
    "tensors, said",
    [
        ([], "tensors must be a list of one tensor at least"),
        ([torch.zeros(0, 5), torch.zeros(0, 1)], "at least one batch of 32; got 0 rows"),
        ([torch.zeros(31, 5), torch.zeros(31, 1)], "at least one batch of 32; got 31 rows"),
        ([torch.zeros(64, 5), torch.zeros(63, 1)], r"equal lengths; got \[64, 63\]"),
    ],
)
def test_data_that_fill_no_batch_are_refused(tensors, said):
    with pytest.raises(ValueError, match=said):
        run(problem()[0], tensors)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"steps": 2.5},
        {"batch_size": 0},
        {"warmup": -1},
        {"save_every": True},
        {"seed": -1},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"weight_decay": -1.0},
        {"clip": 0.0},
        {"clip": float("nan")},
    ],
)
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(CONFIG, **change)


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match="decay must be"):
        average(nn.Linear(1, 1), decay)
