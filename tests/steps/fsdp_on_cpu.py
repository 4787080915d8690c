"""One process of a training whose weights are sharded by FSDP2 over CPU processes (gloo), as over GPUs.

accelerate 1.15 turns FSDP on for the process groups of accelerators only (`AcceleratorState.__init__`): with CPU
processes it ignores the profile and copies the whole model to each. So the one flag it looks at is set here; what
follows is accelerate's and torch's own code. The training is broken off once, so that it goes on from a checkpoint.
"""

import sys

import torch
from accelerate import DistributedType, PartialState
from accelerate.state import AcceleratorState
from torch.distributed.tensor import DTensor
from trl import SFTTrainer

from sdd_utils.base import precision
from sdd_utils.steps import lora_training

plain_init, plain_step, plain_save = AcceleratorState.__init__, SFTTrainer.training_step, lora_training._save
steps = []


def init(self, *args, **kwargs):
    if not AcceleratorState._shared_state:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    plain_init(self, *args, **kwargs)


def step(self, *args, **kwargs):
    steps.append(self.state.global_step)
    if steps == [0, 1, 2, 3]:
        raise KeyboardInterrupt
    return plain_step(self, *args, **kwargs)


def save(trainer, *args):
    assert trainer.is_fsdp_enabled
    assert trainer.accelerator.is_fsdp2
    assert all(isinstance(parameter, DTensor) for parameter in trainer.model.parameters())
    return plain_save(trainer, *args)


AcceleratorState.__init__, SFTTrainer.training_step, lora_training._save = init, step, save
lora_training.SAVE_STEPS, precision.compute_dtype = 2, lambda: torch.float32
try:
    lora_training.main(sys.argv[1])
except KeyboardInterrupt:
    lora_training.main(sys.argv[1])
assert steps == [0, 1, 2, 3, 2, 3, 4, 5], steps
