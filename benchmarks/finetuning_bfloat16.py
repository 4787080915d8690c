"""The same training in bfloat16, as the studies train where the processor multiplies it; TRL by autocast as well."""

from benchmarks import finetuning

NAME = "fine-tuning in bfloat16"
FULL, SMALL = finetuning.FULL, finetuning.SMALL
LARGE = MEMORY = finetuning.MEMORY
DTYPE = "bfloat16"
prepare, ours, PEERS = finetuning.prepare, finetuning.ours, finetuning.PEERS
least_seconds, same = finetuning.least_seconds, finetuning.same
