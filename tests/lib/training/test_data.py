"""Datasets: the bundled digits, and the loaders of downloaded ones on small files in the real format."""

import gzip
import struct

import numpy as np
import pytest
import skimage.data
import torch
from sklearn.datasets import load_digits

from course_lib.training import data

FOLDERS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}


def idx(array: np.ndarray) -> bytes:
    """The IDX format of the published files: magic number, sizes, then bytes."""
    head = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(np.uint8).tobytes()


@pytest.fixture
def no_network(monkeypatch):
    """Send every request to a port where nobody listens."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(params=FOLDERS)
def small(request, tmp_path):
    """A folder with files as published, but of 5 training and 3 test images."""
    raw = tmp_path / FOLDERS[request.param] / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    arrays = {}
    for part, n in (("train", 5), ("t10k", 3)):
        images, labels = rng.integers(0, 256, (n, 28, 28)), rng.integers(0, 10, n)
        images[0, 0, :2] = 0, 255
        arrays[part] = images, labels
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    return request.param, tmp_path, arrays


def test_digits_are_scikit_learns():
    loaded = data.load_dataset("digits")
    assert (len(loaded.train), len(loaded.test)) == (1437, 360)
    pixels = torch.cat([loaded.train, loaded.test]).flatten(1)
    x, y = load_digits(return_X_y=True)
    assert pixels.min() == -1 and pixels.max() == 1
    # the same images with the same labels, in another order
    rows = np.column_stack([(pixels.numpy() + 1) * 8, torch.cat([loaded.train_labels, loaded.test_labels])])
    order = lambda table: table[np.lexsort(table.T)]
    np.testing.assert_array_equal(order(rows), order(np.column_stack([x, y])))


def test_digits_hold_out_a_fifth_of_each_class():
    loaded = data.load_dataset("digits")
    every = torch.bincount(torch.cat([loaded.train_labels, loaded.test_labels]))
    held_out = torch.bincount(loaded.test_labels)
    assert ((held_out - every / 5).abs() < 1).all()
    again = data.load_dataset("digits")
    assert torch.equal(loaded.test, again.test)


def test_published_files_are_read_without_a_network(small, no_network):
    name, root, arrays = small
    loaded = data.load_dataset(name, root=root)
    for images, labels, part in (
        (loaded.train, loaded.train_labels, "train"),
        (loaded.test, loaded.test_labels, "t10k"),
    ):
        assert images.dtype == torch.float32 and labels.dtype == torch.int64
        np.testing.assert_array_equal(labels, arrays[part][1])
        np.testing.assert_allclose((images[:, 0] + 1) * 127.5, arrays[part][0], atol=1e-4)
        assert images[0, 0, 0, 0] == -1 and images[0, 0, 0, 1] == 1


@pytest.mark.parametrize("name", FOLDERS)
def test_a_failed_download_names_the_bundled_alternative(name, tmp_path, no_network):
    with pytest.raises(RuntimeError, match=rf"(?s)'{name}' could not be downloaded to .*'digits'"):
        data.load_dataset(name, root=tmp_path)


def test_a_truncated_archive_is_refused(tmp_path, no_network):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    whole = gzip.compress(idx(np.zeros((5, 28, 28))))
    (raw / "train-images-idx3-ubyte.gz").write_bytes(whole[:-20])
    with pytest.raises(RuntimeError, match="could not be downloaded"):  # its hash is wrong
        data.load_dataset("mnist", root=tmp_path)
    assert (raw / "train-images-idx3-ubyte.gz").read_bytes() == whole[:-20]


@pytest.mark.parametrize("name", ["Digits", "cifar", "", None])
def test_unknown_names_are_refused(name):
    with pytest.raises(ValueError, match="dataset must be one of digits, mnist, fashion-mnist"):
        data.load_dataset(name)


@pytest.mark.parametrize("name", data.PHOTOS)
def test_every_photograph_is_bundled(name, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *args: pytest.fail("a download was tried"))
    x = data.photo(name, 48)
    assert x.shape == (1, 3, 48, 48) and x.dtype == torch.float32
    assert x.min() >= -1 and x.max() <= 1 and x.std() > 0.05


def test_a_photograph_s_crop_is_its_middle():
    pixels = torch.tensor(skimage.data.astronaut()).permute(2, 0, 1)
    x = data.photo("astronaut", 100, crop=100)
    torch.testing.assert_close(x[0], pixels[:, 206:306, 206:306] / 127.5 - 1)
    small = data.photo("astronaut", 128)
    means = pixels.float().view(3, 128, 4, 128, 4).mean((2, 4)) / 127.5 - 1
    assert (small[0] - means).abs().mean() < 0.03  # smoothed, not thinned out


def test_a_grey_photograph_has_three_equal_colours():
    x = data.photo("brick", 64)
    assert torch.equal(x[:, 0], x[:, 1]) and torch.equal(x[:, 0], x[:, 2])


@pytest.mark.parametrize("arguments, said", [
    (("mona_lisa", 64), "name must be one of astronaut"),
    (("chelsea", 0), "1 <= size <= crop <= 300"),
    (("chelsea", 64, 32), "got size 64, crop 32"),
    (("chelsea", 64, 400), "got size 64, crop 400"),
])  # fmt: skip
def test_photo_refuses(arguments, said):
    with pytest.raises(ValueError, match=said):
        data.photo(*arguments[:2], **({"crop": arguments[2]} if len(arguments) > 2 else {}))
