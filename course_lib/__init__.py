"""Deep generative models, a folder a family, each read beside its chapter.

- `training`: the loop, checkpoints, averages of weights, data and devices.
- `nets`: networks that know no model and no loss.
- `scenes`: captioned images of coloured shapes, from a finite list.
- `style`, `mixture`, `vae`, `vq`, `gan`, `diffusion`: the families.
- `metrics`: how far samples are from data.
- `book`, `arena`: what stands on top, for the notebooks.

The names that most programs want are here too. Each is imported when it is asked for, so that
``import course_lib`` costs nothing.

Examples:
    >>> import torch
    >>> import course_lib
    >>> net = lambda x, t: -x
    >>> model = course_lib.Denoiser(net, course_lib.Linear(), "velocity")
    >>> course_lib.heun(model, torch.ones(2, 3), course_lib.grid(8)).shape
    torch.Size([2, 3])
"""

import importlib

_HOME = {  # name: the module that has it
    "Denoiser": "diffusion.denoiser",
    "DiT": "nets.dit",
    "Guided": "diffusion.guidance",
    "Linear": "diffusion.path",
    "TrainConfig": "training.loop",
    "UNet": "nets.unet",
    "VP": "diffusion.path",
    "average": "training.ema",
    "ddim": "diffusion.samplers",
    "drop_labels": "diffusion.guidance",
    "grid": "diffusion.samplers",
    "heun": "diffusion.samplers",
    "image_folder": "training.data",
    "in_batches": "diffusion.samplers",
    "load_dataset": "training.data",
    "train": "training.loop",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("course-lib")
    if name in _HOME:
        return getattr(importlib.import_module(f"course_lib.{_HOME[name]}"), name)
    raise AttributeError(f"module 'course_lib' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
