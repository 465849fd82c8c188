"""Times, places and labels as vectors, against NumPy in double precision."""

import numpy as np
import pytest
import torch

from course_lib.nets.embeddings import LabelEmbedding, Sinusoids, TimeEmbedding, TimeFeatures, grid_positions


def angles(t, dim):
    """1000 t · 10000^(-2i/dim), as in the transformer."""
    return 1000 * t.double().numpy()[:, None] / 10_000 ** (2 * np.arange(dim // 2) / dim)


@pytest.mark.parametrize("dim", [2, 8, 64])
def test_time_features_are_sines_and_cosines(dim):
    t = torch.tensor([0.0, 0.001, 0.1234, 0.5, 1.0])
    want = np.hstack([np.sin(angles(t, dim)), np.cos(angles(t, dim))])
    np.testing.assert_allclose(TimeFeatures(dim)(t), want, atol=5e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_shorter_module_has_the_same_features_up_to_their_rounding(dtype):
    """Taken in bfloat16 the sines of 20 times had 6 different rows, and errors up to 1.95."""
    features, t = TimeFeatures(32).to(dtype), torch.linspace(0, 1, 1001)
    got = features(t, dtype)
    assert got.dtype == dtype
    want = np.hstack([np.sin(angles(t, 32)), np.cos(angles(t, 32))])
    np.testing.assert_allclose(got.double(), want, atol=torch.finfo(dtype).eps + 5e-4)
    distances = torch.cdist(got.float(), got.float()) + 10 * torch.eye(1001)
    assert distances.min() > 0.1  # a thousand steps are told apart


def test_the_embedding_of_a_bfloat16_network_tells_times_apart():
    torch.manual_seed(0)
    embedding = TimeEmbedding(32, 64).bfloat16()(torch.linspace(0, 1, 20), torch.bfloat16)
    assert embedding.dtype == torch.bfloat16 and len(embedding.unique(dim=0)) == 20


def test_frequencies_survive_every_cast_and_are_made_again_from_nothing():
    waves = Sinusoids(torch.tensor([0.1, 3.0]))
    want = waves(torch.tensor([1.7]))
    assert not waves.state_dict() and not list(waves.parameters())
    for move in (
        lambda: waves.half().bfloat16(),
        lambda: waves.double().float(),
        lambda: waves.to("meta").to_empty(device="cpu"),  # as large models are made
    ):
        assert torch.equal(move()(torch.tensor([1.7])), want)
    assert waves(torch.tensor([1.7]), torch.float64).dtype == torch.float64


def test_sinusoids_of_points_go_coordinate_by_coordinate():
    x, w = torch.randn(4, 3), torch.tensor([0.5, 2.0])
    flat = (x.numpy()[:, :, None] * w.numpy()).reshape(4, 6)
    np.testing.assert_allclose(Sinusoids(w)(x), np.hstack([np.sin(flat), np.cos(flat)]), atol=1e-6)


@pytest.mark.parametrize("t", [torch.tensor([0, 500]), torch.tensor([True, False])])
def test_steps_are_no_times(t):
    with pytest.raises(ValueError, match=r"t must be floating-point times in \[0, 1\]; got torch"):
        TimeFeatures(4)(t)


def test_no_label_is_the_last_label_and_others_are_errors():
    table = LabelEmbedding(3, 5)
    assert torch.equal(table(None).expand(2, -1), table(torch.tensor([3, 3])))
    for y in (torch.tensor([4]), torch.tensor([-1]), torch.tensor([0.0])):
        with pytest.raises((IndexError, RuntimeError)):
            table(y)


@pytest.mark.parametrize("side, dim", [(1, 4), (3, 8), (5, 12)])
def test_positions_place_by_place(side, dim):
    got = grid_positions(side, dim)
    assert got.shape == (side**2, dim)
    w = 1 / 10_000 ** (np.arange(dim // 4) / (dim / 4))
    for row in range(side):
        for column in range(side):
            want = [np.sin(column * w), np.cos(column * w), np.sin(row * w), np.cos(row * w)]
            np.testing.assert_allclose(got[row * side + column], np.concatenate(want), atol=1e-6)
