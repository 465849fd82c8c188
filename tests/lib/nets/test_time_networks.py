"""What all networks of a time share: how they begin, learn, compile, and what they never mix or read."""

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from course_lib.nets.dit import DiT
from course_lib.nets.mlp import TimeMLP
from course_lib.nets.unet import UNet

B = 5
IMAGES = {
    "unet": lambda: UNet(1, width=8),
    "unet, three levels": lambda: UNet(1, width=8, levels=(1, 2, 1), blocks=2),
    "unet with all": lambda: UNet(
        1, width=8, classes=3, attention=(1, 2), head_dim=4, dropout=0.1, context=6
    ),
    "dit": lambda: DiT(1, 8, width=16, depth=2, head_dim=8),
    "dit with labels": lambda: DiT(1, 8, patch=4, width=16, depth=2, head_dim=8, classes=3),
}
LARGEST = ["mlp", "unet with all", "dit with labels"]  # for what takes long
NETS = {"mlp": lambda: TimeMLP(2, hidden=16, waves=2), **IMAGES}
WITH_LABELS = [name for name in NETS if "with" in name]


def made(name, seed=0):
    """The network, and a batch of all that it takes."""
    torch.manual_seed(seed)
    net = NETS[name]()
    x = torch.randn(B, 2) if name == "mlp" else torch.randn(B, 1, 8, 8)
    given = {"x": x, "t": torch.rand(B)}
    if name in WITH_LABELS:
        given["y"] = torch.tensor([0, 1, 2, 3, 1])
    if "all" in name:
        given["context"] = torch.randn(B, 4, 6)
    return net, given


def moved(net, size=0.05):
    """The network with every parameter away from its start, as training would."""
    with torch.no_grad():
        for p in net.parameters():
            p.add_(size * torch.randn_like(p))
    return net.eval()


def learn(net, given, steps, lr=0.1):
    """A few steps towards a target that needs x, t and the conditions; returns the first and last loss."""
    target = given["x"].roll(1, -1) * (1 + given["t"]).view(-1, *[1] * (given["x"].ndim - 1))
    if "y" in given:
        target = target + given["y"].view(-1, 1, 1, 1)
    if "context" in given:
        target = target + given["context"].mean((1, 2)).view(-1, 1, 1, 1)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (net(**given).float() - target.float()).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


@pytest.mark.parametrize("name", IMAGES)
def test_at_the_start_the_output_is_zero(name):
    net, given = made(name)
    assert not net(**given).any()


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_reaches_every_parameter_and_every_condition_matters(name, seed):
    """The zeros at the start hold it up in the first steps only: the last layer, then a block's, then all."""
    net, given = made(name, seed)
    learn(net, given, 4, lr=0.01)
    for parameter, p in net.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0, parameter
    net.eval()
    out = net(**given)
    for key, value in given.items():
        assert not torch.allclose(net(**{**given, key: value.flip(0)}), out, rtol=1e-6, atol=1e-9), key


@pytest.mark.parametrize("name", NETS)
def test_samples_do_not_mix(name):
    net, given = made(name)
    moved(net)
    out, order = net(**given), torch.tensor([3, 0, 4, 1, 2])
    permuted = net(**{key: value[order] for key, value in given.items()})
    assert_close(permuted, out[order], rtol=1e-4, atol=1e-5)
    alone = [net(**{key: value[n : n + 1] for key, value in given.items()}) for n in range(B)]
    assert_close(torch.cat(alone), out, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", WITH_LABELS)
def test_no_label_is_the_last_label(name):
    net, given = made(name)
    moved(net)
    y = given.pop("y")
    none = net(**given)
    assert_close(net(**given, y=torch.full_like(y, 3)), none)
    some = net(**given, y=y)
    assert_close(some[3], none[3])
    assert all(not torch.allclose(some[n], none[n]) for n in (0, 1, 2, 4))


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_labels_without_classes_are_refused(name):
    net, given = made(name)
    with pytest.raises(ValueError, match="y must be left out: this network was made without classes"):
        net(**given, y=torch.zeros(B, dtype=torch.int64))


@pytest.mark.parametrize("name", NETS)
def test_steps_in_place_of_times_are_refused(name):
    net, given = made(name)
    with pytest.raises(ValueError, match="t must be floating-point times"):
        net(**{**given, "t": torch.arange(B)})


@pytest.mark.parametrize("name", LARGEST)
def test_a_bfloat16_network_learns_and_agrees_with_its_float32_twin(name):
    net, given = made(name)
    moved(net)
    half = {key: v.bfloat16() if key in ("x", "context") else v for key, v in given.items()}  # t stays
    want = net(**given)
    got = net.bfloat16()(**half)
    assert got.dtype == torch.bfloat16
    assert (got.float() - want).norm() < 0.05 * want.norm()
    first, last = learn(net.train(), half, 15, lr=0.02)
    assert last < 0.8 * first


@pytest.mark.parametrize("name", NETS)
def test_float64(name):
    net, given = made(name)
    moved(net)
    want = net(**given)
    wide = {key: v.double() if v.is_floating_point() else v for key, v in given.items()}
    got = net.double()(**wide)
    assert got.dtype == torch.float64
    assert_close(got.float(), want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", IMAGES)
def test_channels_last_changes_nothing(name):
    net, given = made(name)
    moved(net)
    want = net(**given)
    given["x"] = given["x"].to(memory_format=torch.channels_last)
    assert_close(net.to(memory_format=torch.channels_last)(**given), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LARGEST)
def test_it_compiles_without_a_break(name):
    net, given = made(name)
    moved(net)
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    assert_close(compiled(**given), net(**given), rtol=1e-5, atol=1e-5)
    if name == "unet with all":  # None for label and text is another graph
        bare = {key: given[key] for key in ("x", "t")}
        assert_close(compiled(**bare), net(**bare), rtol=1e-5, atol=1e-5)


class Reads(TorchDispatchMode):
    """Counts how often a number is read back from the device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", NETS)
def test_nothing_is_read_back_from_the_device(name):
    net, given = made(name)
    with Reads() as reads:
        net(**given).square().mean().backward()
    assert reads.count == 0


@pytest.mark.parametrize("name", NETS)
def test_it_is_made_on_the_meta_device_too(name):
    with torch.device("meta"):
        net = NETS[name]()
    assert all(p.is_meta for p in net.parameters())
    real, given = made(name)
    net = net.to_empty(device="cpu")
    net.load_state_dict(real.state_dict())
    assert torch.equal(net.eval()(**given), real.eval()(**given))
