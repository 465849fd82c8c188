"""Datasets: the bundled digits, and the loaders of downloaded ones on small files in the real format."""

import gzip
import hashlib
import pickle
import struct

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader
from torchvision.datasets import CIFAR10

from course_lib import scenes
from course_lib.training import data

pytestmark = pytest.mark.slow

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


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """CIFAR-10's files as published, but of 4 images each, with hashes that say so; and what is in them."""
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    rng = np.random.default_rng(0)
    written = {}

    def write(name: str, content: dict) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    def batch(name: str) -> list[str]:
        written[name] = rng.integers(0, 256, (4, 3072)).astype(np.uint8), rng.integers(0, 10, 4).tolist()
        return [name, write(name, {"data": written[name][0], "labels": written[name][1]})]

    for part in ("train_list", "test_list"):
        monkeypatch.setattr(CIFAR10, part, [batch(name) for name, _ in getattr(CIFAR10, part)])
    names = write("batches.meta", {"label_names": list("abcdefghij")})
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": names})
    return tmp_path, written


def test_cifar_s_files_are_read_without_a_network(cifar, no_network):
    root, written = cifar
    loaded = data.load_dataset("cifar10", root=root)
    pixels = np.concatenate([written[f"data_batch_{i}"][0] for i in range(1, 6)])
    assert loaded.train.shape == (20, 3, 32, 32) and loaded.levels == 256
    assert loaded.train.dtype == torch.float32 and loaded.train.is_contiguous()
    # published as rows of 1024 red, 1024 green and 1024 blue values
    np.testing.assert_allclose((loaded.train.flatten(1) + 1) * 127.5, pixels, atol=1e-4)
    labels = [label for i in range(1, 6) for label in written[f"data_batch_{i}"][1]]
    assert loaded.train_labels.tolist() == labels
    np.testing.assert_allclose((loaded.test.flatten(1) + 1) * 127.5, written["test_batch"][0], atol=1e-4)
    assert loaded.test_labels.tolist() == written["test_batch"][1] and loaded.test_labels.dtype == torch.int64


def test_a_changed_batch_is_refused(cifar, no_network):
    root, _ = cifar
    with (root / CIFAR10.base_folder / "data_batch_3").open("ab") as file:
        file.write(b"!")
    with pytest.raises(RuntimeError, match="'cifar10' could not be downloaded"):  # its hash is wrong
        data.load_dataset("cifar10", root=root)


@pytest.mark.parametrize("name, instead", [
    ("mnist", "digits"), ("fashion-mnist", "digits"), ("cifar10", "patches"),
])  # fmt: skip
def test_a_failed_download_names_the_bundled_alternative(name, instead, tmp_path, no_network):
    assert instead in data.BUNDLED
    with pytest.raises(RuntimeError, match=rf"(?s)'{name}' could not be downloaded to .*'{instead}'"):
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
    with pytest.raises(ValueError, match="dataset must be one of digits, patches, shapes32, mnist, "):
        data.load_dataset(name)


def coordinates(high: int, wide: int) -> np.ndarray:
    """A picture (H, W, 3) whose pixels say where they are."""
    row, column = np.mgrid[:high, :wide]
    return np.stack([row % 256, column % 256, row // 256 * 16 + column // 256], -1).astype(np.uint8)


def test_patches_for_the_test_share_no_pixel_with_training(monkeypatch):
    width = {}
    for name in data.PHOTOS:
        high, width[name] = getattr(skimage.data, name)().shape[:2]
        monkeypatch.setattr(skimage.data, name, lambda size=(high, width[name]): coordinates(*size))
    loaded = data.load_dataset("patches")
    for images, labels, number, test in (
        (loaded.train, loaded.train_labels, 1000, False),
        (loaded.test, loaded.test_labels, 100, True),
    ):
        assert images.shape == (number * len(data.PHOTOS), 3, 32, 32) and images.dtype == torch.float32
        assert (labels.bincount() == number).all()
        low_row, low_column, high = ((images + 1) * 127.5).round().long().unbind(1)
        row, column = high // 16 * 256 + low_row, high % 16 * 256 + low_column  # (N, 32, 32)
        assert torch.equal(row - row[:, :1, :1], torch.arange(32)[:, None].expand_as(row))
        assert torch.equal(column - column[:, :1, :1], torch.arange(32).expand_as(column))
        edge = torch.tensor([width[name] * 4 // 5 for name in data.PHOTOS])[labels, None, None]
        assert ((column >= edge) == test).all()
        assert len(torch.stack([labels, row[:, 0, 0], column[:, 0, 0]], 1).unique(dim=0)) > 0.9 * len(labels)


def test_patches_are_of_the_photographs_and_always_the_same():
    loaded, again = data.load_dataset("patches"), data.load_dataset("patches")
    assert torch.equal(loaded.train, again.train) and torch.equal(loaded.test, again.test)
    for label, name in enumerate(data.PHOTOS):  # from random places, so with the photograph's mean colour
        photo = getattr(skimage.data, name)()
        mean = torch.tensor(photo.reshape(-1, 3 if photo.ndim == 3 else 1).mean(0)) / 127.5 - 1
        assert (loaded.train[loaded.train_labels == label].mean((0, 2, 3)) - mean).abs().max() < 0.2


def test_shapes32_are_different_scenes_with_their_indices():
    loaded = data.load_dataset("shapes32")
    every = torch.cat([loaded.train_labels, loaded.test_labels])
    assert (len(loaded.train), len(loaded.test), loaded.levels) == (20_000, 2000, 256)
    assert len(every.unique()) == 22_000
    for images, labels in (
        (loaded.train[:500], loaded.train_labels[:500]),
        (loaded.test, loaded.test_labels),
    ):
        assert torch.equal(scenes.read(images).index, labels)
    assert torch.equal(data.load_dataset("shapes32").test_labels, loaded.test_labels)
    # uniform over the list: its sixteenths are drawn alike
    parts = (every * 16 // scenes.COUNT).bincount(minlength=16)
    assert (parts - 22_000 / 16).abs().max() < 5 * (22_000 / 16) ** 0.5


def test_an_image_folder_is_read_from_its_files(tmp_path):
    rng = np.random.default_rng(0)
    for name, mode, size in (("b", "RGB", (40, 24)), ("a", "L", (24, 40)), ("a", "RGB", (60, 60))):
        (tmp_path / name).mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (*size[::-1], 3)).astype(np.uint8)
        Image.fromarray(pixels).convert(mode).save(tmp_path / name / f"{size[0]}.png")
    folder = data.image_folder(tmp_path, 24)
    assert folder.classes == ["a", "b"]
    ((x, y),) = DataLoader(folder, batch_size=3)
    assert x.shape == (3, 3, 24, 24) and x.dtype == torch.float32 and y.tolist() == [0, 0, 1]
    assert x.min() >= -1 and x.max() <= 1
    # the shorter side fits already: the middle is cut out, and grey has three equal colours
    tall, wide = (np.asarray(Image.open(tmp_path / name)) for name in ("a/24.png", "b/40.png"))
    for channel in x[0]:
        np.testing.assert_allclose((channel + 1) * 127.5, tall[8:32], atol=1e-4)
    np.testing.assert_allclose((x[2].permute(1, 2, 0) + 1) * 127.5, wide[:, 8:32], atol=1e-4)


def test_image_folder_refuses(tmp_path):
    with pytest.raises(ValueError, match="size must be an integer of at least 1"):
        data.image_folder(tmp_path, 0)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        data.image_folder(tmp_path / "nowhere", 8)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty"):
        data.image_folder(tmp_path, 8)


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
