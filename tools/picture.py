"""Make the picture of the landing page from the course's models: `python -m tools.picture`.

Four panels: a photograph in the manner of another, noise that becomes digits, digits on request, and noise in
the plane carried to data. It has no words, so that it reads on a light and on a dark page.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import make_moons
from torch import Tensor

from course_lib import pretrained
from course_lib.book import show
from course_lib.diffusion import Denoiser, Guided, Linear, grid, heun
from course_lib.nets.mlp import TimeMLP
from course_lib.pretrained import mnist_flow
from course_lib.style import RandomFeatures, transfer
from course_lib.training import TrainConfig, photo, train
from tools.notebooks import ROOT

SIDE, GAP = 348, 16  # of a panel, and between two, in pixels
PATH = ROOT / "book" / "_static" / "made.webp"


def painted() -> np.ndarray:
    """A cat in the manner of a photograph of a cup of coffee."""
    cat, cup = photo("chelsea", SIDE // 2), photo("coffee", SIDE // 2, crop=300)
    features = RandomFeatures(generator=torch.Generator().manual_seed(0))
    *_, last = transfer(features, cup, content=cat, content_weight=0.02, steps=50)
    large = F.interpolate(last.image, size=(SIDE, SIDE), mode="bicubic")
    return large[0].permute(1, 2, 0).add(1).div(2).numpy()


def becoming(columns: int = 7, each: int = 4) -> np.ndarray:
    """Seven digits, a row each, from noise at the left to a digit at the right."""
    model = Guided(pretrained.load("mnist_flow"), 2.0)
    x = torch.randn(7, 1, 28, 28, generator=torch.Generator().manual_seed(3))
    labels, times = torch.tensor([3, 8, 5, 2, 9, 4, 6]), grid((columns - 1) * each)
    frames = [x]
    for k in range(columns - 1):
        x = heun(model, x, times[k * each : (k + 1) * each + 1], y=labels)
        frames.append(x)
    return sheet(torch.stack(frames, 1).flatten(0, 1))


def on_request() -> np.ndarray:
    """Seven digits each of seven classes."""
    labels = torch.arange(7).repeat_interleave(7)
    return sheet(mnist_flow.draw(Guided(pretrained.load("mnist_flow"), 2.0), labels, seed=1))


def sheet(images: Tensor) -> np.ndarray:
    """Grey images (49, 1, 28, 28) in [-1, 1], seven a row, with gaps that are transparent."""
    side, pitch = 46, 50
    large = F.interpolate(images.clamp(-1, 1), size=(side, side), mode="bicubic").clamp(-1, 1).add(1).div(2)
    found = np.zeros((SIDE, SIDE, 4), np.float32)
    for i, image in enumerate(large.numpy()):
        top, left = i // 7 * pitch, i % 7 * pitch
        found[top : top + side, left : left + side, :3] = image[0, :, :, None]
        found[top : top + side, left : left + side, 3] = 1
    return found


def carried() -> np.ndarray:
    """Points on their way from a cloud of noise to two half moons."""
    moons = torch.tensor(make_moons(4000, noise=0.06, random_state=0)[0], dtype=torch.float32)
    moons = 1.6 * (moons - moons.mean(0)) / moons.std(0)
    torch.manual_seed(0)
    model = Denoiser(TimeMLP(2), Linear(), "velocity")
    for _ in train(model, model.loss, (moons,), TrainConfig(steps=3000, batch_size=512, schedule="cosine")):
        pass
    noise, times = torch.randn(250, 2), grid(40)
    way, x = [noise], noise
    with torch.no_grad():
        for k in range(40):
            x = heun(model, x, times[k : k + 2])
            way.append(x)
    fig, ax = plt.subplots(figsize=(SIDE / 100, SIDE / 100), dpi=200, layout="constrained")
    ax.plot(*torch.stack(way).permute(2, 0, 1), color=show.GREY, lw=0.4, alpha=0.5)
    for points, colour, size in ((noise, show.COLORS[1], 2.5), (x, show.COLORS[0], 4)):
        ax.plot(*points.T, ".", ms=size, color=colour)
    ax.set_aspect("equal")
    ax.axis("off")
    fig.patch.set_alpha(0)
    fig.canvas.draw()
    return np.asarray(fig.canvas.buffer_rgba()) / 255


def main() -> None:
    torch.set_num_threads(1)
    whole = Image.new("RGBA", (4 * SIDE + 3 * GAP, SIDE))
    for i, panel in enumerate([painted(), becoming(), on_request(), carried()]):
        drawn = Image.fromarray((panel * 255).round().clip(0, 255).astype(np.uint8)).resize((SIDE, SIDE))
        whole.paste(drawn, (i * (SIDE + GAP), 0))
    whole.save(PATH, quality=88, method=6)
    print(f"{PATH.relative_to(ROOT)}: {PATH.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
