r"""Training, for any model and any loss.

- `loop`: `train`, a generator that takes a step and says how it went; `TrainConfig`, `Step`
- `batches`: rows of tensors or batches of a loader, epoch after epoch, with a place to resume from
- `checkpoint`: one file that holds all that the next step depends on, and what run it belongs to
- `ema`: averages of the weights; `average`, `EMA`
- `finite`: losses that are no numbers, found without waiting for the device
- `modes`: training and evaluation mode, put back submodule by submodule; `evaluating`
- `device`: `pick_device`, `seed_everything`, and the precision that a device is good at
- `data`: bundled and downloaded datasets; `load_dataset`, `image_folder`, `photo`
"""

from course_lib.training.data import Images, image_folder, load_dataset, photo
from course_lib.training.device import pick_device, seed_everything
from course_lib.training.ema import EMA, average
from course_lib.training.loop import Step, TrainConfig, train
from course_lib.training.modes import evaluating

__all__ = [
    "EMA",
    "Images",
    "Step",
    "TrainConfig",
    "average",
    "evaluating",
    "image_folder",
    "load_dataset",
    "photo",
    "pick_device",
    "seed_everything",
    "train",
]
