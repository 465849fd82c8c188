"""Which precision a device gets, seeds, and modes that are put back."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from course_lib.training.device import default_precision, random_states, seed_everything, set_random_states
from course_lib.training.modes import evaluating


def draw():
    return random.random(), np.random.rand(), torch.rand(()).item()


@pytest.mark.parametrize(
    "emulated, native, wanted", [(True, True, "bf16"), (True, False, "no"), (False, False, "no")]
)
def test_only_a_gpu_that_has_bfloat16_itself_gets_it(monkeypatch, emulated, native, wanted):
    """A T4 emulates it: `is_bf16_supported()` is true there."""
    supports = lambda including_emulation=True: emulated if including_emulation else native
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supports)
    assert default_precision(torch.device("cuda")) == wanted
    assert default_precision(torch.device("cpu")) == default_precision(torch.device("mps")) == "no"


def test_seeds_and_states_cover_all_generators():
    seed_everything(3)
    first = draw()
    states = random_states()
    second = draw()
    seed_everything(3)
    assert draw() == first
    set_random_states(states)
    assert draw() == second != first


@pytest.mark.parametrize("fails", [False, True])
def test_evaluating_puts_every_submodule_back(fails):
    model = nn.Sequential(nn.BatchNorm1d(2).eval(), nn.Sequential(nn.Dropout())).train()
    model[0].eval()
    modes = [part.training for part in model.modules()]
    try:
        with evaluating(model) as same:
            assert same is model and not any(part.training for part in model.modules())
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert [part.training for part in model.modules()] == modes
