"""The profile, the device and the seeds that `start` chooses."""

import random

import numpy as np
import pytest
import torch

from course_lib.book import profiles


@pytest.fixture
def machine(monkeypatch):
    """Pretend to be a machine: which accelerators it has, and what COURSE_PROFILE says."""

    def pretend(cuda=False, mps=False, profile=None):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.delenv("COURSE_PROFILE", raising=False)
        if profile is not None:
            monkeypatch.setenv("COURSE_PROFILE", profile)

    return pretend


@pytest.mark.parametrize("cuda, environment, want", [
    (False, None, "book"),
    (True, None, "full"),
    (False, "", "book"),
    (True, "smoke", "smoke"),
    (False, "full", "full"),
])  # fmt: skip
def test_profile_comes_from_the_environment_then_from_the_machine(machine, cuda, environment, want):
    machine(cuda=cuda, profile=environment)
    assert profiles.start().profile == want


@pytest.mark.parametrize("profile", profiles.PROFILES)
def test_an_argument_wins_over_the_environment(machine, profile):
    machine(profile="book" if profile == "smoke" else "smoke")
    run = profiles.start(profile)
    assert run.profile == profile
    assert run.pick(smoke="smoke", book="book", full="full") == profile


@pytest.mark.parametrize("cuda, mps, want", [
    (True, True, "cuda"),
    (True, False, "cuda"),
    (False, True, "mps"),
    (False, False, "cpu"),
])  # fmt: skip
def test_device(machine, cuda, mps, want):
    machine(cuda=cuda, mps=mps)
    assert profiles.start("smoke").device == torch.device(want)


def test_every_generator_is_seeded():
    def draw(seed):
        assert profiles.start("smoke", seed).seed == seed
        return random.random(), np.random.rand(), torch.rand(()).item()

    first, again, other = draw(7), draw(7), draw(8)
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_seeds_at_the_ends_of_the_range(seed):
    assert profiles.start("smoke", seed).seed == seed


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, "0", None, True])
def test_bad_seed(seed):
    with pytest.raises(ValueError, match="seed"):
        profiles.start("smoke", seed)


@pytest.mark.parametrize("profile", ["fast", "Book", "", 1])
def test_bad_profile(profile):
    with pytest.raises(ValueError, match="profile must be one of smoke, book, full"):
        profiles.start(profile)


def test_bad_profile_in_the_environment(machine):
    machine(profile="fast")
    with pytest.raises(ValueError, match=r"profile.*'fast'"):
        profiles.start()


def test_a_refused_start_changes_no_generator():
    torch.manual_seed(3)
    want = torch.rand(())
    torch.manual_seed(3)
    with pytest.raises(ValueError):
        profiles.start("fast", 5)
    assert torch.rand(()) == want


def test_pick_wants_every_profile():
    with pytest.raises(TypeError):
        profiles.start("smoke").pick(smoke=1, book=2)


@pytest.mark.parametrize("profile, threads", [("smoke", 1), ("book", 1), ("full", 3)])
def test_the_small_profiles_take_one_thread_on_a_processor(machine, profile, threads):
    machine()
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    profiles.start(profile)
    found = torch.get_num_threads()
    torch.set_num_threads(before)
    assert found == threads
