"""Checkpoints: killed while writing, full disks, links, other runs, older files, other process counts."""

import copy
import functools
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from train_script import CONFIG, problem, squares

from course_lib.training.ema import average
from course_lib.training.loop import train

SCRIPT = Path(__file__).with_name("train_script.py")


def run(model, data, config=CONFIG, **options):
    return list(train(model, squares(model), data, config, **options))


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def read(path):
    return torch.load(path, weights_only=True)


@pytest.fixture
def saved(tmp_path):
    model, data = problem()
    run(model, data, replace(CONFIG, steps=3), ema=average(model, 0.9), checkpoint=tmp_path / "c.pt")
    return tmp_path / "c.pt"


# Broken off


def test_a_run_killed_while_it_writes_keeps_the_last_file_and_ends_with_the_same_bits(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    killed = subprocess.run([sys.executable, SCRIPT, tmp_path], env=environment)
    assert killed.returncode == -signal.SIGKILL
    assert read(tmp_path / "run.pt")["step"] == 3 and (tmp_path / ".run.pt.part").exists()
    (whole, data), (broken, _) = problem(), problem()
    torch.manual_seed(5)
    losses = [s.loss for s in run(whole, data)]
    torch.manual_seed(6)
    rest = run(broken, data, checkpoint=tmp_path / "run.pt")
    assert [s.loss for s in rest] == losses[3:] and equal(whole.state_dict(), broken.state_dict())
    assert not (tmp_path / ".run.pt.part").exists()


def test_a_resumed_run_may_be_longer(tmp_path):
    (model, data), (other, _) = problem(), problem()
    torch.manual_seed(5)
    whole = run(model, data)
    torch.manual_seed(5)
    first = run(other, data, replace(CONFIG, steps=5), checkpoint=tmp_path / "c.pt")
    second = run(other, data, checkpoint=tmp_path / "c.pt")
    assert [s.loss for s in whole] == [s.loss for s in first + second] and second[0].step == 6
    assert run(other, data, checkpoint=tmp_path / "c.pt") == []
    with pytest.raises(ValueError, match=r"steps must be at least 12, which checkpoint .* has taken"):
        run(other, data, replace(CONFIG, steps=11), checkpoint=tmp_path / "c.pt")


@pytest.fixture
def little_room():
    """No file may grow past 4 KiB, as on a disk that is nearly full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))

    yield fill
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("first", [True, False])
def test_a_full_disk_is_said_in_words_and_the_last_file_stays(tmp_path, little_room, first):
    file = tmp_path / "c.pt"
    model, data = problem()
    if not first:
        run(model, data, replace(CONFIG, steps=3), checkpoint=file)
    kept = None if first else file.read_bytes()
    little_room()
    said = "there is none yet" if first else "the last one is as it was"
    step = 3 if first else 6
    with pytest.raises(
        OSError, match=rf"c\.pt of step {step} cannot be written, perhaps .* disk is full; {said}"
    ):
        run(model, data, checkpoint=file)
    assert (file.read_bytes() if file.exists() else None) == kept
    assert [p.name for p in tmp_path.iterdir()] == ([] if first else ["c.pt"])


@pytest.mark.parametrize("there", [True, False])
def test_a_symbolic_link_is_written_through(tmp_path, there):
    target, link = tmp_path / "far" / "real.pt", tmp_path / "c.pt"
    target.parent.mkdir()
    link.symlink_to(target)
    if there:
        run(*problem(), replace(CONFIG, steps=3), checkpoint=link)
    run(*problem(), checkpoint=link)
    assert link.is_symlink() and not target.is_symlink() and read(target)["step"] == 12
    assert len(list(tmp_path.iterdir())) == 2 and len(list(target.parent.iterdir())) == 1


# Files that are none


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused_and_left_alone(saved, keep):
    whole = saved.read_bytes()
    part = whole[: int(keep * len(whole)) if isinstance(keep, float) else keep]
    saved.write_bytes(part)
    with pytest.raises(ValueError, match=r"checkpoint .*c\.pt cannot be read"):
        run(*problem(), checkpoint=saved)
    assert saved.read_bytes() == part


@pytest.mark.parametrize("thing", [{"model": 1}, [1, 2], torch.zeros(3)])
def test_a_foreign_file_is_refused(tmp_path, thing):
    torch.save(thing, tmp_path / "c.pt")
    with pytest.raises(ValueError, match="was not written by this course's training loop"):
        run(*problem(), checkpoint=tmp_path / "c.pt")


def test_a_file_that_runs_code_is_refused(tmp_path):
    torch.save(nn.Linear(1, 1), tmp_path / "c.pt")  # a pickled class, which a safe load refuses
    with pytest.raises(ValueError, match="cannot be read"):
        run(*problem(), checkpoint=tmp_path / "c.pt")


# Other runs


def other_loss(x, y):
    return x.mean()


@pytest.mark.parametrize("change, said", [
    (lambda m, x, y, o: o.update(config=replace(CONFIG, lr=0.02)), r"lr=0\.01, not 0\.02"),
    (lambda m, x, y, o: o.update(config=replace(CONFIG, schedule="cosine")), "schedule='constant', not"),
    (lambda m, x, y, o: o.update(loss=other_loss), r"loss='squares.<locals>.loss', not 'other_loss'"),
    (lambda m, x, y, o: o.update(data=(x + 1e-3, y)), r"tensor 0=.*\(96, 5\).*float32"),
    (lambda m, x, y, o: o.update(data=(x, y.flip(0))), "tensor 1="),
    (lambda m, x, y, o: o.update(data=(x, y.double())), "tensor 1=.*float64"),
    (lambda m, x, y, o: o.update(data=(x[:90], y[:90])), r"tensor 0=.*\(90, 5\)"),
    (lambda m, x, y, o: o.update(data=(x, y, y)), "data='2 tensors', not '3 tensors'"),
    (lambda m, x, y, o: o.update(data=DataLoader(TensorDataset(x, y), 32)), "'2 tensors', not 'DataLoader"),
    (lambda m, x, y, o: o.update(ema=average(m, 0.99)), r"decays of ema=\[0\.9\], not \[0\.99\]"),
    (lambda m, x, y, o: o.update(ema=()), r"decays of ema=\[0\.9\], not \[\]"),
    (lambda m, x, y, o: o.update(optimizer=torch.optim.SGD(m.parameters(), 0.01)), "'AdamW', not 'SGD'"),
    (lambda m, x, y, o: o.update(optimizer=torch.optim.AdamW(m.parameters(), 0.01, (0.8, 0.9))), "s betas="),
    (lambda m, x, y, o: o.update(model=problem(width=17)[0]), r"(?s)another model: .*size mismatch"),
])  # fmt: skip
def test_a_checkpoint_of_another_run_is_refused(saved, change, said):
    model, data = problem()
    kept = saved.read_bytes()
    options = {
        "model": model,
        "loss": squares(model),
        "data": data,
        "config": CONFIG,
        "ema": average(model, 0.9),
    }
    change(model, *data, options)
    if options["model"] is not model:
        options["ema"] = average(options["model"], 0.9)
    with pytest.raises(ValueError, match=said):
        list(train(**options, checkpoint=saved))
    assert saved.read_bytes() == kept


def test_a_falling_schedule_has_its_number_of_steps(tmp_path):
    config = replace(CONFIG, steps=4, schedule="linear")
    run(*problem(), config, checkpoint=tmp_path / "c.pt")
    with pytest.raises(ValueError, match="steps=4, not 8"):
        run(*problem(), replace(config, steps=8), checkpoint=tmp_path / "c.pt")


@pytest.mark.parametrize("change, said", [
    ({"batch_size": 16}, "data='DataLoader of batches of 16', not 'DataLoader of batches of 8'"),
    ({"rows": 90}, "dataset='TensorDataset of length 90', not"),
])  # fmt: skip
def test_another_loader_is_refused(tmp_path, change, said):
    def loader(rows=96, batch_size=8):
        return DataLoader(TensorDataset(*(t[:rows] for t in problem()[1])), batch_size)

    run(problem()[0], loader(**change), replace(CONFIG, steps=2), checkpoint=tmp_path / "c.pt")
    with pytest.raises(ValueError, match=said):
        run(problem()[0], loader(), checkpoint=tmp_path / "c.pt")


# Files of another age or another number of processes


def test_an_older_file_goes_on_with_the_same_bits(tmp_path, saved):
    """One of a time when neither the newer settings nor the description of a run were written."""
    whole = read(saved)
    old = copy.deepcopy(whole)
    for name in ("schedule", "accumulate", "precision"):
        del old["config"][name]
    del old["about"], old["batches"]
    torch.save(old, tmp_path / "old.pt")
    ends = []
    for file in (saved, tmp_path / "old.pt"):
        model, data = problem()
        ends.append([s.loss for s in run(model, data, ema=average(model, 0.9), checkpoint=file)])
    assert ends[0] == ends[1] and len(ends[0]) == 9


@pytest.mark.parametrize("loader", [False, True])
def test_another_number_of_processes_resumes_and_says_what_changed(tmp_path, loader):
    model, data = problem()
    data = DataLoader(TensorDataset(*data), 32) if loader else data
    run(model, data, replace(CONFIG, steps=4), checkpoint=tmp_path / "c.pt")
    whole = read(tmp_path / "c.pt")
    for name in ("random", "batches"):
        whole[name] = whole[name] * 2
    torch.save(whole, tmp_path / "c.pt")
    said = "an epoch begins" if loader else "the order of the rows goes on"
    with pytest.warns(UserWarning, match=f"made by 2 processes and goes on with 1: {said}, but noise"):
        steps = run(problem()[0], data, checkpoint=tmp_path / "c.pt")
    assert [s.step for s in steps] == list(range(5, 13))


def test_what_was_bound_to_a_loss_is_part_of_its_name(tmp_path):
    model, data = problem()

    def loss(x, y, *, weight):
        return weight * (model(x) - y).square().mean()

    list(train(model, functools.partial(loss, weight=1.0), data, CONFIG, checkpoint=tmp_path / "c.pt"))
    with pytest.raises(ValueError, match=r"weight=1\.0.*weight=2\.0"):
        list(train(model, functools.partial(loss, weight=2.0), data, CONFIG, checkpoint=tmp_path / "c.pt"))
