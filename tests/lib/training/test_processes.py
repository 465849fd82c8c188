"""Two processes: the losses of one, different noise, equal weights, shares of the data, and resumption."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from processes_script import gan_losses, losses

SCRIPT = Path(__file__).with_name("processes_script.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each process wrote."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        added = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    added |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(Path.cwd())}
    start = lambda rank: subprocess.Popen(  # as `accelerate launch` does, without its own process
        [sys.executable, SCRIPT, folder], env=os.environ | added | {"RANK": rank, "LOCAL_RANK": rank}
    )
    assert [process.wait() for process in [start("0"), start("1")]] == [0, 0]
    assert len(torch.load(folder / "c.pt", weights_only=True)["random"]) == 2
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_two_processes_give_the_losses_of_one(found):
    for name, alone in (("losses", losses()), ("gan", gan_losses())):
        np.testing.assert_allclose(found[0][name], alone, atol=1e-5)
        assert found[0][name] == found[1][name]


def test_noise_and_dropout_differ_and_weights_are_equal(found):
    for one, two in zip(found[0]["drawn"], found[1]["drawn"], strict=True):
        assert all(a != b for a, b in zip(one, two, strict=True))
    assert torch.equal(found[0]["weights"], found[1]["weights"])


def test_a_loader_is_shared_without_overlap(found):
    for name in ("shuffled", "stream"):
        rows = [np.floor(each[name]).astype(int) for each in found]  # (steps, 4) of each
        for epoch in range(len(rows[0]) // 3):
            both = np.concatenate([r[3 * epoch : 3 * epoch + 3].ravel() for r in rows])
            assert sorted(both) == list(range(24))


def test_a_loader_s_run_that_is_broken_off_resumes_in_both(found):
    assert found[0]["resumed"] and found[1]["resumed"]
