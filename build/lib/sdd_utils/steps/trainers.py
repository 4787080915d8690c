"""TRL's trainer with the losses of the arms; `lora_training` starts them.

All divide the loss by the tokens with loss of a step, over all its passes and processes.
"""

import time

import torch
from torch import Tensor
from trl import SFTTrainer

from sdd_utils.engine import attention
from sdd_utils.steps import distillation_loss, teacher


class Trainer(SFTTrainer):
    """TRL's trainer, spared on CPUs what it is spared on GPUs: logits of prompts, and attention between rows.

    It also logs how many seconds each step took, from reading its rows on.
    """

    def get_batch_samples(self, *args, **kwargs):
        self._began = time.perf_counter()
        return super().get_batch_samples(*args, **kwargs)

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs:
            logs["seconds"] = time.perf_counter() - self._began
        super().log(logs, *args, **kwargs)

    def has_own_loss(self, model) -> bool:
        """Whether logits are read here: TRL's fused head gives cross-entropy without them, but not on CPUs."""
        return model.device.type == "cpu"

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if not self.has_own_loss(model):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs.pop("labels")
        kept = (labels[0, 1:] != -100).nonzero()[:, 0]  # a batch is one sequence
        logits, outputs = response_logits(model, self.model, inputs, kept)
        loss = self.summed_loss(logits, labels[0], inputs, kept)
        loss = loss * self.accelerator.num_processes / max(1, int(num_items_in_batch))  # processes are averaged
        return (loss, outputs) if return_outputs else loss

    def summed_loss(self, logits: Tensor, labels: Tensor, inputs: dict, kept: Tensor) -> Tensor:
        """The loss summed over the tokens that have one.

        Args:
            logits: (kept, vocabulary), each of the token behind its place.
            labels: (tokens,), -100 where there is no loss.
            inputs: what the model has read, as one sequence.
            kept: places in it.
        """
        return distillation_loss.cross_entropy(logits, labels[kept + 1])


class TeacherTrainer(Trainer):
    """Forward KL to the distributions that `teacher` has written; `places` says where they lie."""

    places: teacher.Places

    def has_own_loss(self, model) -> bool:
        return True

    def summed_loss(self, logits: Tensor, labels: Tensor, inputs: dict, kept: Tensor) -> Tensor:
        found = [teacher.read(self.places[key]) for key in row_keys(inputs, labels)]
        if not found:  # fillers only
            return logits.sum()
        ids, log_probs = (torch.cat(tensors).to(logits.device) for tensors in zip(*found, strict=True))
        return distillation_loss.forward_kl(logits, ids, log_probs)


def counted(trainer: SFTTrainer, name: str) -> float:
    """The sum over all steps of a number that was logged with each; a resumed training goes on with the sum."""
    return sum(entry.get(name, 0) for entry in trainer.state.log_history)


def row_keys(inputs: dict, labels: Tensor) -> list[str]:
    """Keys of the rows of a sequence that have tokens with loss, see `teacher.row_key`."""
    rows = split_rows(inputs, inputs["input_ids"][0], labels)
    return [teacher.row_key(ids.tolist(), trained) for ids, own in rows if (trained := int((own != -100).sum()))]


def split_rows(inputs: dict, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """The parts of (tokens,) tensors that belong to each row of a sequence."""
    whole = [len(tensors[0])]
    lengths = attention.row_lengths(inputs["position_ids"][0]) if "position_ids" in inputs else whole
    return list(zip(*(tensor.split(lengths) for tensor in tensors), strict=True))


def response_logits(model, attending, inputs: dict, kept: Tensor) -> tuple[Tensor, object]:
    """(kept, vocabulary) logits at these places of the one sequence of `inputs`, and all that the model returned.

    Args:
        attending: the model whose configuration says how it attends, where `model` wraps it.
    """
    rows = attention.named_rows(attending, inputs["position_ids"][0]) if "position_ids" in inputs else {}
    outputs = model(**inputs, **rows, logits_to_keep=kept, use_cache=False)
    logits = outputs.logits.squeeze(0)  # not [0], whose gradient is filled with zeros first
    return logits if len(logits) == len(kept) else logits[kept], outputs  # xLSTM's: all
