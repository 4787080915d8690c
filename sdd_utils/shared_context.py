"""lm-eval's HFLM, faster on the same requests: each context is read once, and generation is continuous."""

import json
from collections.abc import Iterator

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from tqdm.auto import tqdm

from sdd_utils import decoding, generation


class SharedContextLM(HFLM):
    """HFLM that reads a multiple-choice context once, not once per choice, and decodes continuously.

    Log-likelihoods are the same up to rounding, about as many times faster as the context is longer than the choices.
    Greedy texts are the same up to ties within rounding; few-shot examples that all documents share are read once.
    """

    def generate_until(self, requests, disable_tqdm=False):
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(index)
        if (
            not decoding.supports(self.model)
            or self.think_end_token
            or not all(map(_is_greedy, map(json.loads, groups)))
        ):
            return super().generate_until(requests, disable_tqdm=disable_tqdm)
        texts = [""] * len(requests)
        for settings, indices in groups.items():
            contexts = {str(index): requests[index].args[0] for index in indices}
            for index, text in self._continue(contexts, json.loads(settings), disable_tqdm=disable_tqdm):
                texts[index] = text
        return texts

    def _continue(self, contexts: dict[str, str], settings: dict, *, disable_tqdm: bool) -> Iterator[tuple[int, str]]:
        """(index, text before its first stop sequence) of each context, as they finish."""
        settings = normalize_gen_kwargs(settings, self.max_gen_toks)
        stops = handle_stop_sequences(
            settings["until"], eos=self.tok_decode(self.eot_token_id, skip_special_tokens=False)
        )
        most = settings["max_gen_toks"]
        cut = {"left_truncate_len": self.max_length - most, "truncation": self.truncation}
        prompts = {id_: self.tok_batch_encode([text], **cut)[0][0].tolist() for id_, text in contexts.items()}
        tail = 2 + max(len(stop.encode()) for stop in stops)  # no token is shorter than a byte

        def stop(_: str, tokens: list[int]) -> bool:
            text = self.tok_decode(tokens[-tail:], skip_special_tokens=False)
            return any(sequence in text for sequence in stops if sequence)

        rows = decoding.decode(
            self.model,
            prompts,
            batch_size=self.batch_size,
            max_new_tokens=most,
            ends=[*generation.end_tokens(self.model, self.tokenizer), self.eot_token_id],
            draw=decoding.GREEDY,
            stop=stop,
        )
        for id_, tokens in tqdm(rows, total=len(prompts), desc="texts", disable=disable_tqdm or None):
            yield int(id_), postprocess_generated_text(self.tok_decode(tokens), stop=stops, think_end_token=None)

    def _loglikelihood_tokens(self, requests, disable_tqdm=False, override_bs=None):
        if any(key is None for key, _, _ in requests):  # rolling windows share nothing but their first token
            return super()._loglikelihood_tokens(requests, disable_tqdm=disable_tqdm, override_bs=override_bs)
        groups: dict[tuple, list[int]] = {}
        for index, (_, context, _) in enumerate(requests):
            groups.setdefault(tuple(context), []).append(index)
        scores = [(0.0, False)] * len(requests)
        ordered = sorted(groups, key=lambda context: (-len(context), context))
        for start in tqdm(range(0, len(ordered), self.batch_size), desc="choices", disable=disable_tqdm or None):
            chunk = ordered[start : start + self.batch_size]
            indices = [groups[context] for context in chunk]
            choices = [[requests[i][2] for i in group] for group in indices]
            flat = (i for group in indices for i in group)
            for index, score in zip(flat, self._score_choices(chunk, choices), strict=True):
                scores[index] = score
        return scores

    @torch.inference_mode()
    def _score_choices(self, contexts, choices: list[list[list[int]]]) -> list[tuple[float, bool]]:
        """(log-likelihood, is greedy) of every choice, in order; contexts are cut on the left to the model's length."""
        room = self.max_length - max(len(choice) for group in choices for choice in group)
        ids, mask = _padded([list(context)[-room:] for context in contexts], side="left", device=self.device)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        output = self.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1
        )
        owner = torch.tensor([row for row, group in enumerate(choices) for _ in group], device=self.device)
        flat = [choice for group in choices for choice in group]
        logits = output.logits[owner, -1:]
        if max(map(len, flat)) > 1:
            rest = self._logits_after(output.past_key_values, mask, owner, [choice[:-1] for choice in flat])
            logits = torch.cat([logits, rest], dim=1)
        return _choice_scores(logits, flat)

    def _logits_after(self, cache, mask, owner, heads: list[list[int]]) -> torch.Tensor:
        """Logits after each token of each choice but its last, on top of the contexts' cache."""
        ids, head_mask = _padded([head or [0] for head in heads], side="right", device=self.device)
        cache.batch_select_indices(owner)
        start = mask.sum(dim=1)[owner, None]
        return self.model(
            input_ids=ids,
            attention_mask=torch.cat([mask[owner], head_mask], dim=1),
            position_ids=start + torch.arange(ids.shape[1], device=self.device),
            past_key_values=cache,
            use_cache=True,
        ).logits


def _padded(rows: list[list[int]], *, side: str, device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, (rows, longest), padded with token 0 on one side."""
    longest = max(map(len, rows))
    ids, mask = torch.zeros(2, len(rows), longest, dtype=torch.long, device=device)
    for index, row in enumerate(rows):
        where = slice(longest - len(row), None) if side == "left" else slice(0, len(row))
        ids[index, where] = torch.tensor(row, device=device)
        mask[index, where] = 1
    return ids, mask


def _choice_scores(logits: torch.Tensor, choices: list[list[int]]) -> list[tuple[float, bool]]:
    scores = []
    for row, choice in zip(logits, choices, strict=True):
        log_probs = torch.log_softmax(row[: len(choice)].float(), dim=-1)
        target = torch.tensor(choice, device=log_probs.device)
        total = log_probs.gather(1, target[:, None]).sum()
        scores.append((float(total), bool((log_probs.argmax(dim=-1) == target).all())))
    return scores


def _is_greedy(settings: dict) -> bool:
    """Whether a request asks for the likeliest token at each step and names no setting that changes it."""
    known = {"until", "max_gen_toks", "do_sample", "temperature"}
    return not settings.get("do_sample") and not settings.get("temperature") and settings.keys() <= known
