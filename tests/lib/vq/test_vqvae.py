"""The VQ-VAE: encoding, decoding, modes, precision and training."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from course_lib.nets.convolutional import ConvDecoder, ConvEncoder
from course_lib.training.loop import TrainConfig, train
from course_lib.vq.lookupfree import FiniteScalarQuantizer, LookupFreeQuantizer
from course_lib.vq.quantizers import VectorQuantizer, VectorQuantizerEMA
from course_lib.vq.vqvae import VQVAE

torch.manual_seed(0)
FOUR = [
    VectorQuantizer(7, 3),
    VectorQuantizerEMA(7, 3),
    FiniteScalarQuantizer([5] * 3),
    LookupFreeQuantizer(3),
]
BLOCKS = torch.rand(64, 1, 2, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
BLOCKS = F.interpolate(BLOCKS, size=8)  # which can be learned
CONFIG = TrainConfig(steps=60, batch_size=32, lr=3e-3)


def small_model(quantizer=None, dim=4):
    torch.manual_seed(0)
    quantizer = quantizer or VectorQuantizerEMA(8, dim)
    shape = dict(width=8, levels=1)
    return VQVAE(ConvEncoder(1, dim, **shape), quantizer, ConvDecoder(1, dim, **shape))


@pytest.mark.parametrize("quantizer", FOUR, ids=lambda q: type(q).__name__)
def test_encode_decode_and_forward_agree(quantizer):
    model = small_model(quantizer, dim=3).eval()
    x = torch.rand(5, 1, 8, 6) * 2 - 1
    out = model(x)
    assert out.images.shape == x.shape
    assert torch.equal(model.encode(x), out.codes.indices) and out.codes.indices.shape == (5, 4, 3)
    torch.testing.assert_close(model.decode(out.codes.indices), out.images)
    want = (out.images - x).square().mean() + out.codes.loss
    torch.testing.assert_close(model.loss(x), want)


def test_encoding_moves_no_average_and_leaves_every_submodule_in_its_mode():
    """Frozen parts stayed frozen only until the first call, after which their statistics moved."""
    frozen = nn.Sequential(nn.BatchNorm2d(4), nn.Dropout(0.5)).eval()
    model = small_model().train()
    model.encoder = nn.Sequential(model.encoder, frozen.eval())
    flags = [part.training for part in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(model.encode(x), model.encode(x))
    with pytest.raises(ValueError):
        model.encode(torch.zeros(3, 1, 7, 7))
    assert flags == [part.training for part in model.modules()] and not frozen[0].training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    x = BLOCKS
    list(train(model, model.loss, (x,), TrainConfig(steps=3, batch_size=32)))
    assert torch.equal(frozen[0].running_mean, torch.zeros(4))
    assert not torch.equal(before["quantizer.codebook"], model.quantizer.codebook)


@pytest.mark.parametrize("bad", [1.5, torch.nan])
def test_images_out_of_range_are_not_encoded(bad):
    with pytest.raises(ValueError, match=r"x must lie in \[-1, 1\]"):
        small_model().encode(torch.full((2, 1, 8, 8), bad))


def test_training_lowers_the_loss():
    model = small_model()
    losses = [step.loss for step in train(model, model.loss, (BLOCKS,), CONFIG)]
    assert losses[-1] < 0.7 * losses[0]
    whole = model.loss(BLOCKS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = model.loss(BLOCKS)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, whole, rtol=0.1, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("quantizer", FOUR, ids=lambda q: type(q).__name__)
def test_models_in_half_precision_train_encode_and_decode(quantizer, dtype):
    model = small_model(copy.deepcopy(quantizer), dim=3).to(dtype).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, losses = BLOCKS[:16], []
    for _ in range(8):
        losses.append(model.loss(x))
        losses[-1].backward()
        optimizer.step(), optimizer.zero_grad()
    assert losses[0].dtype == torch.float32 and losses[-1].item() < losses[0].item()
    indices = model.encode(x)
    images = model.decode(indices)
    assert indices.dtype == torch.int64 and images.dtype == dtype and images.isfinite().all()


@pytest.mark.parametrize("quantizer", FOUR, ids=lambda q: type(q).__name__)
def test_a_training_step_reads_nothing_from_the_device(quantizer):
    model = small_model(copy.deepcopy(quantizer), dim=3).train()
    with HostReads() as reads:
        model.loss(BLOCKS).backward()
    assert reads.count == 0
    with HostReads() as reads:
        BLOCKS.sum().item()
    assert reads.count == 1  # the count counts


class HostReads(TorchDispatchMode):
    """Counts numbers that an operation hands from the device to Python."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))
