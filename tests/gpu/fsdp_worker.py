"""The one process of a training by FSDP, which notes its times, its peak of memory, and what was not sharded.

accelerate 1.15 shards for the process groups of accelerators only, see tests/steps/fsdp_on_cpu.py. Without a card the
one flag it looks at is set here, and the training takes a card's path.
"""

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

from accelerate import DistributedType, PartialState
from accelerate.state import AcceleratorState
from gpu import measure, training
from torch.distributed.tensor import DTensor

from sdd_utils.steps import lora_training

plain_init, plain_save = AcceleratorState.__init__, lora_training._save
seen = {}


def init(self, *args, **kwargs):
    if not AcceleratorState._shared_state and not measure.on_card():
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    plain_init(self, *args, **kwargs)


def save(trainer, *args):
    seen["whole"] = sum(not isinstance(parameter, DTensor) for parameter in trainer.model.parameters())
    return plain_save(trainer, *args)


if __name__ == "__main__":
    adapter = json.loads(Path(sys.argv[1]).read_text())["adapter"]
    patched = mock.patch.object(AcceleratorState, "__init__", init), mock.patch.object(lora_training, "_save", save)
    path = nullcontext() if measure.on_card() else training.as_on_a_card()
    with path, patched[0], patched[1], training.clock() as ends:
        lora_training.main(sys.argv[1])
    noted = seen | {"ends": ends, "peak_mb": measure.peak_mb()}
    Path(f"{adapter}.seen.json").write_text(json.dumps(noted))
