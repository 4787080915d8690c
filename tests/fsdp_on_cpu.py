"""One process of a training whose weights are sharded by FSDP2 over CPU processes (gloo), as over GPUs.

accelerate 1.15 turns FSDP on for the process groups of accelerators only (`AcceleratorState.__init__`): with CPU
processes it ignores the profile and copies the whole model to each. So the one flag it looks at is set here; what
follows is accelerate's and torch's own code. With DIE_AFTER in the environment the process dies, killed, at that step.
"""

import os
import signal
import sys

from accelerate import DistributedType, PartialState
from accelerate.state import AcceleratorState
from torch.distributed.tensor import DTensor
from trl import SFTTrainer

from sdd_utils import training

plain_init, plain_step, plain_save = AcceleratorState.__init__, SFTTrainer.training_step, training._save


def init(self, *args, **kwargs):
    if not AcceleratorState._shared_state:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    plain_init(self, *args, **kwargs)


def step(self, *args, **kwargs):
    if self.state.global_step == int(os.environ.get("DIE_AFTER", -1)):
        os.kill(os.getpid(), signal.SIGKILL)
    print(f"trains step {self.state.global_step + 1}", flush=True)
    return plain_step(self, *args, **kwargs)


def save(trainer, *args):
    assert trainer.is_fsdp_enabled
    assert trainer.accelerator.is_fsdp2
    assert all(isinstance(parameter, DTensor) for parameter in trainer.model.parameters())
    print("sharded by FSDP2", flush=True)
    return plain_save(trainer, *args)


AcceleratorState.__init__, SFTTrainer.training_step, training._save = init, step, save
training.SAVE_STEPS = 2
training.main(sys.argv[1])
