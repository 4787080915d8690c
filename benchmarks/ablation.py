"""What each special path of ours is worth: the same work once more, with that path switched off.

The product has no option for this: a path is switched off where it is chosen, by a patch. A ratio is the time without
the path over the time with it. Both sides compute as the hardware does best, as the studies do.
"""

from collections.abc import Callable
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace
from unittest import mock

import torch
from transformers import AttentionInterface
from transformers.models.llama.modeling_llama import repeat_kv

from benchmarks import distillation, distillation_engines, finetuning, multiple_choice, some_rows
from sdd_utils.engine import attention, decoding, kv_slots, lm_eval_model, lora_linear, packed_linear
from sdd_utils.steps import lora_training

PREFIX = "ablation: "
CONTROL = "ours once more"  # how far its ratio is from 1 is how much the others say
Switch = Callable[[], object]  # makes a context in which a path is off


def off(module: object, name: str, value: object) -> Switch:
    """Something of a module replaced by what does without it."""
    return lambda: mock.patch.object(module, name, value)


def _keys_repeated(module, query, key, value, mask, *, masks=None, **settings):
    """Joint attention that reads a key head once for each of its query heads, as transformers' SDPA does."""
    if masks is not None:
        key, value = (repeat_kv(states, query.shape[1] // key.shape[1]) for states in (key, value))
    return attention._attend_by_blocks(module, query, key, value, mask, masks=masks, **settings)


def _loss_of_all_logits(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    """`lora_training.Trainer`'s loss on a CPU, with the LM head on every position."""
    labels = inputs.pop("labels")[0, 1:]
    rows = attention.named_rows(self.model, inputs["position_ids"][0])
    outputs = model(**inputs, **rows, use_cache=False)
    loss = torch.nn.functional.cross_entropy(outputs.logits[0, :-1].float(), labels, reduction="sum")
    loss = loss / int(num_items_in_batch)
    return (loss, outputs) if return_outputs else loss


UNPACKED = off(packed_linear, "_pays", lambda model: False)
DECODING = {
    "drafts by prompt lookup": off(decoding, "DRAFT", 0),
    "packed weights": UNPACKED,
    "slots by blocks": off(kv_slots, "BLOCK", 2**20),
    "query heads grouped by key head": lambda: mock.patch.dict(
        AttentionInterface._global_mapping, {attention.BY_BLOCKS: _keys_repeated}
    ),
    "attention by blocks, and drafts with it": off(attention, "by_blocks", nullcontext),
    "an opening of all prompts read once": off(decoding, "commonprefix", lambda rows: []),
    "prompts read in groups": off(decoding, "READ_ROWS", 1),
    "slots, by transformers' generate": off(decoding, "decode", decoding.generate_batches),
}
TRAINING = {
    "attention by rows": off(attention, "set_by_rows", lambda model: False),
    "plain products for short rows": off(attention, "SHORT", 0),
    "LM head on responses only": off(lora_training.Trainer, "compute_loss", _loss_of_all_logits),
    "updates of LoRA added in place": off(lora_linear, "added_in_place", lambda model: nullcontext()),
}
SCORING = {
    "contexts shared by choices": off(lm_eval_model.SharedContextLM, "_shares_contexts", lambda self: False),
    "examples shared by documents": off(lm_eval_model, "WORTHWHILE", 2**30),
    "packed weights": UNPACKED,
}


def _texts(model, **size) -> dict:
    """State of `distillation`, and what `distillation_engines.same` needs, as bfloat16 decides ties by chance."""
    return distillation.prepare(model, **size) | {"name": model, "every": 2, "read": {}}


def _stage(stage: ModuleType, name: str, switches: dict[str, Switch], *, full: dict, large: dict, **changes):
    """A stage as `compare` knows it, whose peers are ours without one path each."""

    def without(switch: Switch) -> Callable:
        def run(state):
            with switch():
                return stage.ours(state)

        return run

    own = {name: value for name, value in vars(stage).items() if name in ("prepare", "ours", "same")}
    peers = {CONTROL: (without(nullcontext), 2)}
    peers |= {f"without: {path}": (without(switch), 1) for path, switch in switches.items()}
    sizes = {"FULL": stage.FULL | full, "LARGE": large, "SMALL": stage.SMALL, "MEMORY": None}
    return SimpleNamespace(NAME=PREFIX + name, PEERS=peers, **own | sizes | changes)


# Documents of MMLU share their examples; where there is no hub, no offline task's do.
ASKED = {"mmlu_world_religions": 5} if some_rows.HUB else multiple_choice.FACTS
STAGES = [
    _stage(
        distillation,
        "distillation",
        DECODING,
        full={"rows": 24, "max_new_tokens": 20, "batch_size": 24},  # more than a block of slots
        large={"rows": 20, "max_new_tokens": 16},
        prepare=_texts,
        same=distillation_engines.same,
        amount=distillation.amount,
    ),
    _stage(finetuning, "fine-tuning", TRAINING, full={"rows": 8}, large={}),
    _stage(
        multiple_choice,
        "multiple choice",
        SCORING,
        full={"shots": ASKED, "documents": 8, "batch_size": 8},
        large={},
    ),
    _stage(  # a processor without bfloat16 packs the weights for other reasons
        multiple_choice,
        "multiple choice in float32",
        {"packed weights": UNPACKED},
        full={"shots": ASKED, "documents": 4, "batch_size": 4},
        large={"documents": 2},
        DTYPE="float32",
    ),
]
