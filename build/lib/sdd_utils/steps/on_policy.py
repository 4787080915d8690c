"""On-policy distillation: the model that is trained writes the answers, and the unpruned one scores their tokens.

Before every step the rows' prompts are answered by the model as it is then, drawn from its whole distribution
(temperature 1). Both models read these answers, and the loss is the reverse KL at each of their tokens (Agarwal et al.
2306.13649 with on-policy share 1; Gu et al. 2306.08543). No gradient flows through the drawing.

An answer is as long as the row's original response at most, so steps see no more tokens than SFT's do. What answers
leave over by ending early, later ones may use.
"""

import torch
from torch import Tensor

from sdd_utils.engine import attention, decoding
from sdd_utils.models import architecture, chat_format
from sdd_utils.steps import distillation_loss
from sdd_utils.steps.trainers import Trainer, counted, response_logits, split_rows


class OnPolicyTrainer(Trainer):
    """Reverse KL to a loaded `original` on the student's own answers.

    With each step it logs `trained_tokens`, those of the answers, `seen_tokens`, prompts included, and
    `allowed_tokens`, those of the original responses.
    """

    original: torch.nn.Module

    def has_own_loss(self, model) -> bool:
        return True

    def get_batch_samples(self, *args, **kwargs):
        batches, _ = super().get_batch_samples(*args, **kwargs)
        batches = self._answered(batches)
        trained = sum(int((batch["labels"] != -100).sum()) for batch in batches)
        return batches, torch.tensor(trained, device=self.args.device)

    def _answered(self, batches: list[dict]) -> list[dict]:
        """The batches of a step with the student's answers in place of the responses."""
        rows = [
            (f"{number} {place}", *row)
            for number, batch in enumerate(batches)
            for place, row in enumerate(split_rows(batch, batch["input_ids"][0], batch["labels"][0]))
        ]
        asked = {id_: _prompt(ids, labels) for id_, ids, labels in rows if (labels != -100).any()}
        allowed = {id_: len(ids) - len(asked[id_]) for id_, ids, _ in rows if id_ in asked}
        spare = counted(self, "allowed_tokens") - counted(self, "trained_tokens")
        answers = self._write(asked, {id_: n + int(spare) // len(allowed) for id_, n in allowed.items()})
        self._count(asked, answers, allowed=sum(allowed.values()))
        made = {id_: _example(asked.get(id_, ids.tolist()), answers.get(id_, [])) for id_, ids, _ in rows}
        own = [[made[id_] for id_ in made if id_.split()[0] == str(number)] for number in range(len(batches))]
        return [self.data_collator(examples) for examples in own]

    def _count(self, asked: dict[str, list], answers: dict[str, list], *, allowed: int) -> None:
        trained = sum(map(len, answers.values()))
        counts = {"trained_tokens": trained, "seen_tokens": trained + sum(map(len, asked.values()))}
        for name, count in (counts | {"allowed_tokens": allowed}).items():
            self._metrics["train"][name].append(count)  # TRL logs them with the step's loss

    def _write(self, prompts: dict[str, list[int]], lengths: dict[str, int]) -> dict[str, list[int]]:
        """Answers of up to so many tokens, by row."""
        model = self.accelerator.unwrap_model(self.model).get_base_model()
        room = architecture.context_length(model.config) - max(map(len, prompts.values()))
        most = int(min(max(lengths.values()), room))
        settings = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": most}
        # Draws depend on the step and the row alone, so a resumed training has the same ones.
        draw = decoding.sampler(seed=decoding.row_seed(f"step {self.state.global_step}", self.args.seed), **settings)
        ends = chat_format.end_tokens(self.processing_class, model.generation_config)
        model.eval()
        try:
            with self.compute_loss_context_manager(), attention.not_by_rows(model):
                decode, at_once = decoding.engine_for(model, batch_size=len(prompts))
                asked = {"batch_size": at_once, "max_new_tokens": most, "ends": ends, "draw": draw}
                if decode is decoding.decode:  # transformers' own cannot end rows at a length of each
                    asked["stop"] = lambda id_, new: len(new) >= lengths[id_]
                return {id_: new[: lengths[id_]] for id_, new in decode(model, prompts, **asked)}
        finally:
            model.train()

    def summed_loss(self, logits: Tensor, labels: Tensor, inputs: dict, kept: Tensor) -> Tensor:
        with torch.no_grad():
            expected, _ = response_logits(self.original, self.original, inputs, kept)
        return distillation_loss.reverse_kl(logits, expected)


def _prompt(ids: Tensor, labels: Tensor) -> list[int]:
    """What stands before the response."""
    return ids[: int((labels != -100).nonzero()[0, 0])].tolist()


def _example(prompt: list[int], answer: list[int]) -> dict:
    return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}
