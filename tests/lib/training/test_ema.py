"""Averages of weights: against their recursion in NumPy and PyTorch's AveragedModel."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from train_script import CONFIG, problem, squares

from course_lib.training.ema import EMA, average
from course_lib.training.loop import train


def test_several_averages_follow_pytorchs_and_copy_buffers():
    model, data = problem()
    decays = (0.5, 0.99)
    averages = [average(model, decay) for decay in decays]
    theirs = [AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay)) for decay in decays]
    for _ in train(model, squares(model), data, CONFIG, ema=averages):
        for ours, other in zip(averages, theirs, strict=True):
            other.update_parameters(model)
            for a, b in zip(ours.module.parameters(), other.module.parameters(), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
            for own, copied in zip(model.buffers(), ours.module.buffers(), strict=True):
                assert torch.equal(own, copied)
    assert not any(part.training for part in averages[0].module.modules())


def test_a_state_restores_an_average_and_so_does_one_of_pytorchs():
    model = nn.Linear(2, 1)
    old = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    ours = average(model, 0.5)
    for _ in range(2):
        nn.init.normal_(model.weight)
        old.update_parameters(model), ours.update(model)
    for state in (old.state_dict(), ours.state_dict()):
        again = average(nn.Linear(2, 1), 0.5)
        again.load_state_dict(copy.deepcopy(state))
        before = again.module.weight.clone()
        again.update(model)  # the third, which copies nothing
        torch.testing.assert_close(again.module.weight, (before + model.weight) / 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_half_precision_are_averaged_in_full(dtype):
    model = nn.Linear(1, 1).to(dtype)
    ema, wanted = average(model, 0.999), None
    for value in np.linspace(1, 2, 200):
        nn.init.constant_(model.weight, value)
        now = model.weight.item()
        wanted = now if wanted is None else 0.999 * wanted + 0.001 * now
        ema.update(model)
    assert ema.module.weight.item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match="decay must be"):
        EMA(nn.Linear(1, 1), decay)
