"""Takes EMA steps in one process or in two with half of each batch; `test_vqvae` compares them."""

import sys
from pathlib import Path

import torch

from course_lib.vq.quantizers import VectorQuantizerEMA

if __name__ == "__main__":
    torch.manual_seed(0)
    quantizer = VectorQuantizerEMA(6, 3, decay=0.8).train()
    batches = torch.randn(5, 4, 3, 4, 4)
    rank, parts, name = 0, 1, "one"
    if torch.distributed.is_torchelastic_launched():
        torch.distributed.init_process_group("gloo")
        rank, parts = torch.distributed.get_rank(), torch.distributed.get_world_size()
        name = str(rank)
    for batch in batches:
        quantizer(batch[rank::parts])
    torch.save(quantizer.state_dict(), Path(sys.argv[1]) / f"{name}.pt")
    if parts > 1:
        torch.distributed.destroy_process_group()
