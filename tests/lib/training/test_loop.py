"""The training loop: against a loop by hand, what it leaves behind, precision, host reads, losses of NaN."""

import copy
import functools
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, PolynomialLR
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader
from train_script import CONFIG, problem, squares

from course_lib.training import device
from course_lib.training.ema import average
from course_lib.training.loop import TrainConfig, train


@pytest.fixture
def fresh_state():
    """No Accelerator was made in this process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def run(model, data, config=CONFIG, **options):
    return list(train(model, squares(model), data, config, **options))


# What a step does


def test_the_same_bits_as_a_loop_by_hand():
    model, data = problem()
    torch.manual_seed(5)
    steps = run(model, data, replace(CONFIG, warmup=4, clip=0.5, weight_decay=0.1))
    assert [s.step for s in steps] == list(range(1, 13)) and steps[-1].seconds > 0
    other, _ = problem()
    optimizer = torch.optim.AdamW(other.parameters(), lr=1.0, weight_decay=0.1, fused=True)
    torch.manual_seed(5)
    for step in range(12):
        epoch, batch = divmod(step, 3)
        order = torch.randperm(96, generator=torch.Generator().manual_seed(epoch))
        value = squares(other)(*(t[order[32 * batch : 32 * batch + 32]] for t in data))
        assert value.item() == steps[step].loss
        optimizer.param_groups[0]["lr"] = 1e-2 * min(1, (step + 1) / 4)
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(other.parameters(), 0.5)
        optimizer.step()
    assert equal(model.state_dict(), other.state_dict())


@pytest.mark.parametrize("schedule, theirs", [
    ("cosine", lambda o: CosineAnnealingLR(o, T_max=12)),
    ("linear", lambda o: PolynomialLR(o, total_iters=12)),
])  # fmt: skip
def test_schedules_are_pytorchs_for_each_group(schedule, theirs):
    model, data = problem()
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[4].parameters(), "lr": 1e-3}]
    own = torch.optim.SGD(groups)
    other = torch.optim.SGD(copy.deepcopy([{"params": [torch.zeros(1)], "lr": lr} for lr in (0.1, 1e-3)]))
    scheduler = theirs(other)
    for _ in train(model, squares(model), data, replace(CONFIG, schedule=schedule, warmup=0), optimizer=own):
        for a, b in zip(own.param_groups, other.param_groups, strict=True):
            assert a["lr"] == pytest.approx(b["lr"], rel=1e-9)
        with warnings.catch_warnings(action="ignore"):
            scheduler.step()
    assert [group["lr"] for group in own.param_groups] == [0.1, 1e-3]  # as they were


@pytest.mark.parametrize("sizes", [(4, 4, 4), (7, 2, 3)])
def test_accumulated_gradients_are_those_of_one_batch(sizes):
    torch.manual_seed(0)
    x, y = torch.randn(12, 3).double(), torch.randn(12, 1).double()
    one, many = nn.Linear(3, 1).double(), nn.Linear(3, 1).double()
    many.load_state_dict(one.state_dict())
    ends = []
    for model, data, parts in (
        (one, [(x, y)], 1),
        (many, list(zip(x.split(sizes), y.split(sizes), strict=True)), 3),
    ):
        config = TrainConfig(steps=5, accumulate=parts)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        ends.append([s.loss for s in train(model, squares(model), data, config, optimizer=optimizer)])
    np.testing.assert_allclose(*ends, rtol=1e-6)
    torch.testing.assert_close(one.weight, many.weight, rtol=1e-12, atol=1e-12)


def test_tensors_rows_are_divided_among_accumulated_batches():
    seen = []

    def note(rows):
        seen.append(rows[:, 0].tolist())
        return model(rows).square().mean()

    model = nn.Linear(1, 1)
    data = (torch.arange(8.0)[:, None],)
    list(train(model, note, data, TrainConfig(steps=4, batch_size=4)))
    whole = [sorted(rows) for rows in seen]
    seen.clear()
    list(train(model, note, data, TrainConfig(steps=4, batch_size=4, accumulate=2)))
    assert [sorted(seen[i] + seen[i + 1]) for i in range(0, 8, 2)] == whole
    assert {len(rows) for rows in seen} == {2}


def test_a_batch_reaches_the_loss_in_its_own_form():
    x = torch.randn(4, 2)
    model, got = nn.Linear(2, 1), []

    def loss(*args, **kwargs):
        got.append((len(args), sorted(kwargs)))
        return model(torch.cat([*args, *kwargs.values()])).square().mean()

    for batch in (x, (x, x), [x], {"x0": x, "y": x}):
        list(
            train(
                model,
                loss,
                [batch] if not isinstance(batch, torch.Tensor) else DataLoader(x, 4),
                TrainConfig(1),
            )
        )
    assert got == [(1, []), (2, []), (1, []), (0, ["x0", "y"])]


def test_channels_last_computes_the_same():
    torch.manual_seed(0)
    images, ends = torch.randn(16, 3, 8, 8), []
    for last in (False, True):
        torch.manual_seed(1)
        model = nn.Conv2d(3, 4, 3)

        def loss(x, model=model, last=last):
            assert x.is_contiguous(memory_format=torch.channels_last) or not last
            return model(x).square().mean()

        ends.append([s.loss for s in train(model, loss, [images], TrainConfig(5, 8, channels_last=last))])
    np.testing.assert_allclose(*ends, rtol=1e-5)


def test_a_compiled_loss_computes_the_same_and_leaves_the_model_plain(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    (model, data), (other, _) = problem(), problem()
    torch.manual_seed(5)
    plain = [s.loss for s in run(other, data)]
    torch.manual_seed(5)
    compiled = run(model, data, replace(CONFIG, compile=True), checkpoint=tmp_path / "c.pt")
    np.testing.assert_allclose([s.loss for s in compiled], plain, rtol=1e-5)
    saved = torch.load(tmp_path / "c.pt", weights_only=True)
    assert saved["model"].keys() == problem()[0].state_dict().keys()


def test_the_bar_shows_loss_and_rate(capsys):
    run(*problem(), progress=True)
    said = capsys.readouterr().out
    assert "loss=" in said and "it/s" in said and "12/12" in said


# What training leaves behind


@pytest.mark.parametrize("root", [True, False])
def test_modes_are_as_they_were_and_frozen_statistics_do_not_move(root):
    model, data = problem()
    model.train(root)
    model[1].eval()
    mean = model[1].running_mean.clone()
    modes = [part.training for part in model.modules()]
    for _ in train(model, squares(model), data, CONFIG):
        assert model.training and model[3].training  # also where the caller has sampled in between
        model.eval()
    assert [part.training for part in model.modules()] == modes
    assert torch.equal(model[1].running_mean, mean) == root  # one in evaluation mode trains as a whole
    steps = train(model, squares(model), data, CONFIG)
    next(steps)
    steps.close()  # a run that is not finished
    assert [part.training for part in model.modules()] == modes


def test_frozen_weights_and_the_forward_pass_are_as_they_were(fresh_state):
    model, data = problem()
    model[0].requires_grad_(False)
    frozen, forward = model[0].weight.clone(), model.forward
    accelerator = Accelerator(mixed_precision="bf16")
    inside = []

    def loss(x, y):
        out = model(x)
        inside.append(out.dtype)
        return (out - y).square().mean()

    list(train(model, loss, data, CONFIG, accelerator=accelerator))
    assert torch.equal(model[0].weight, frozen) and not model[0].weight.requires_grad
    assert set(inside) == {torch.bfloat16} and model(data[0]).dtype == torch.float32
    assert model.forward == forward and "forward" not in vars(model)
    assert not accelerator._models and not accelerator._optimizers


def test_inputs_are_not_changed():
    model, data = problem()
    before = [t.clone() for t in data]
    run(model, data)
    assert all(torch.equal(a, b) for a, b in zip(data, before, strict=True))


# Precision


def inside(config=CONFIG, **options):
    """In which type the loss computes."""
    model, data = problem()
    found = set()

    def loss(x, y):
        found.add(model(x).dtype)
        return (model(x) - y).square().mean()

    next(train(model, loss, data, config, **options))
    return found.pop()


def test_the_environment_and_a_ready_accelerator_are_obeyed(fresh_state, monkeypatch):
    assert inside() == torch.float32  # on a processor
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert inside() == torch.bfloat16
    assert inside(replace(CONFIG, precision="no")) == torch.float32  # the configuration comes first
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    assert inside() == torch.bfloat16  # the process's Accelerators have it
    AcceleratorState._reset_state(reset_partial_state=True)
    Accelerator()  # a user's own, on whatever device: no bfloat16
    monkeypatch.setattr(device, "default_precision", lambda device: "bf16")
    assert inside() == torch.float32
    assert inside(replace(CONFIG, precision="bf16")) == torch.bfloat16
    AcceleratorState._reset_state(reset_partial_state=True)
    assert inside() == torch.bfloat16


# Host reads and losses that are no numbers


class Reads(TorchDispatchMode):
    """Counts the numbers that the processor asks of the device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("loader", [False, True])
def test_at_most_one_number_in_ten_steps_is_read(loader):
    model, data = problem()
    averages = [average(model, 0.9), average(model, 0.99)]
    given = [(data[0][:32], data[1][:32])] if loader else data
    steps = train(
        model, squares(model), given, replace(CONFIG, steps=100, save_every=0, accumulate=2), ema=averages
    )
    next(steps)
    with Reads() as reads:
        taken = [next(steps) for _ in range(60)]
        assert reads.count <= 6
        assert taken[-1].loss > 0 and reads.count <= 7  # what the caller reads


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_step_that_is_no_number_is_not_taken_and_spares_the_checkpoint(tmp_path, kind):
    model, data = problem()
    model[1] = nn.Identity()
    smooth, calls = average(model, 0.5), []

    def breaks(x, y):
        calls.append(1)
        value = squares(model)(x, y)
        if len(calls) != 8:
            return value
        return (
            value * torch.nan if kind == "loss" else value + (model(x) * 0).abs().sqrt().mean()
        )  # a root of zero

    taken = []
    with pytest.raises(FloatingPointError, match="at step 8; that step was not taken"):
        for _ in train(
            model, breaks, data, replace(CONFIG, save_every=7), ema=smooth, checkpoint=tmp_path / "c.pt"
        ):
            taken.append(copy.deepcopy(model.state_dict()))
    assert len(taken) == 9 and equal(taken[7], taken[6])  # found at step 10
    for net in (model, smooth.module):
        assert all(v.isfinite().all() for v in net.parameters())
    saved = torch.load(tmp_path / "c.pt", weights_only=True)
    assert saved["step"] == 7 and equal(saved["model"], taken[6])


def test_weights_that_another_optimizer_has_spoilt_are_not_saved(tmp_path):
    model, data = problem()
    calls = []

    def breaks(x, y):
        calls.append(1)
        return squares(model)(x, y) * (torch.nan if len(calls) == 5 else 1)

    with pytest.raises(FloatingPointError, match="step 5"):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        list(train(model, breaks, data, CONFIG, optimizer=optimizer, checkpoint=tmp_path / "c.pt"))
    saved = torch.load(tmp_path / "c.pt", weights_only=True)
    assert saved["step"] == 3 and all(v.isfinite().all() for v in saved["model"].values())


# What is refused


@pytest.mark.parametrize("change", [
    {"steps": 0}, {"steps": 2.5}, {"batch_size": 0}, {"warmup": -1}, {"save_every": True}, {"seed": -1},
    {"lr": float("nan")}, {"weight_decay": -1.0}, {"clip": 0.0}, {"schedule": "cos"}, {"precision": "fp16"},
])  # fmt: skip
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(CONFIG, **change)


def test_a_loss_of_each_row_is_refused_by_pytorch():
    model, data = problem()
    with pytest.raises(RuntimeError, match="scalar outputs"):
        list(train(model, lambda x, y: (model(x) - y).square().mean(1), data, CONFIG))
