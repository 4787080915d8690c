"""lm-eval's HFLM, faster on the same requests: each context is read once, and generation is continuous."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from os.path import commonprefix
from unittest import mock

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from tqdm import tqdm
from transformers.cache_utils import DynamicCache

from sdd_utils.engine import decoding, packed_linear, probe
from sdd_utils.models import chat_format

Tokens = tuple[int, ...]
# Contexts that begin with as many equal tokens may have their few-shot examples in common.
ALIKE = 32
# What is to be saved by reading a common opening once, in tokens: below it fuller batches are worth more.
WORTHWHILE = 512


class SharedContextLM(HFLM):
    """HFLM that reads a multiple-choice context once, not once per choice, and decodes continuously.

    Log-likelihoods are the same up to rounding, about as many times faster as the context is longer than the choices.
    Greedy texts are the same up to ties within rounding. Few-shot examples that documents share are read once.
    """

    def apply_chat_template(self, chat_history, add_generation_prompt=True):
        """The same prompts as everywhere here; lm-eval's own would drop a system message and let models think."""
        return chat_format.render(self.tokenizer, chat_history)

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        """lm-eval puts a BOS token before the text itself: the tokenizer must not add another."""
        with mock.patch.object(self, "add_bos_token", False):
            return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)

    @property
    def _ends(self) -> list[int]:
        return chat_format.end_tokens(self.tokenizer, self.model.generation_config)

    def generate_until(self, requests, disable_tqdm=False):
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(index)
        if (
            not decoding.supports(self.model)
            or self.think_end_token
            or not all(map(_is_greedy, map(json.loads, groups)))
        ):
            _, batch_size = decoding.engine_for(self.model, batch_size=self.batch_size)
            plain = mock.patch.object(self, "batch_size_per_gpu", batch_size)
            with plain, mock.patch.object(self.model.generation_config, "eos_token_id", self._ends):
                texts = super().generate_until(requests, disable_tqdm=disable_tqdm)
            # An end token that is not special is decoded, and one that the tokenizer lacks has no text.
            for end in filter(None, self.tokenizer.convert_ids_to_tokens(self._ends)):
                texts = [text.removesuffix(end) for text in texts]
            return texts
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
            ends=self._ends,
            draw=decoding.GREEDY,
            stop=stop,
        )
        for id_, tokens in tqdm(rows, total=len(prompts), desc="texts", disable=disable_tqdm or None):
            text = chat_format.without_thinking(chat_format.finished(self.tokenizer, tokens, self._ends)["text"]) or ""
            yield int(id_), postprocess_generated_text(text, stop=stops, think_end_token=None)

    def _loglikelihood_tokens(self, requests, disable_tqdm=False, override_bs=None):
        with packed_linear.packed_linears(self.model):
            return self._likelihoods(requests, disable_tqdm=disable_tqdm, override_bs=override_bs)

    def _likelihoods(self, requests, *, disable_tqdm: bool, override_bs: int | None) -> list[tuple[float, bool]]:
        """(log-likelihood, is greedy) of every (_, context, choice) of tokens, in order."""
        rolling = any(key is None for key, _, _ in requests)  # windows, which share nothing but their first token
        plain, groups = [], {}
        shared = not rolling and self._shares_contexts()
        for index, (_, context, choice) in enumerate(requests):
            fits = len(context) + len(choice) <= self.max_length + 1  # else each choice cuts its context otherwise
            (groups.setdefault(tuple(context), []) if shared and fits else plain).append(index)
        scores = [(0.0, False)] * len(requests)
        if plain:
            alone = not probe.ignores_filling(self.model)
            # `override_bs` counts for lm-eval only where it looks for a batch size itself.
            one = mock.patch.object(self, "batch_size_per_gpu", 1 if alone else self.batch_size)
            # Sparse attention chooses among other keys where it fills a cache, which no one reads here.
            text = self.model.config.get_text_config(decoder=True)
            with one, mock.patch.object(text, "use_cache", False, create=True):
                settings = {"disable_tqdm": disable_tqdm, "override_bs": override_bs}
                of_plain = super()._loglikelihood_tokens([requests[i] for i in plain], **settings)
            for index, score in zip(plain, of_plain, strict=True):
                scores[index] = score
        with tqdm(total=len(groups), desc="choices", disable=disable_tqdm or not groups or None) as progress:
            for opening, family in group_by_prefix(groups):
                cache = self._read_opening(opening)
                for start in range(0, len(family), self.batch_size):
                    chunk = family[start : start + self.batch_size]
                    indices = [groups[context] for context in chunk]
                    choices = [[requests[i][2] for i in group] for group in indices]
                    flat = (i for group in indices for i in group)
                    for index, score in zip(flat, self._score_choices(chunk, choices, opening, cache), strict=True):
                        scores[index] = score
                    progress.update(len(chunk))
        return scores

    def _shares_contexts(self) -> bool:
        """Whether the model's configuration allows a context to be read once for its choices, and a try was exact."""
        instead = "a context is read once for each choice"
        return decoding.may_decode(self.model) and probe.agrees(
            self.model, "sharing contexts", self._shared_and_plain, instead=instead
        )

    def _shared_and_plain(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Logits of choices on shared contexts, which are filled up and begin alike, and those of plain passes."""
        opening, first, second, *answers = probe.random_rows(self.model, (4, 2, 13, 1, 4, 2))
        contexts, choices = [tuple(opening + second), tuple(opening + first)], [answers, answers[:2]]
        found = iter(self._choice_logits(contexts, choices, tuple(opening), self._read_opening(tuple(opening))))
        for context, group in zip(contexts, choices, strict=True):
            for choice in group:
                plain = probe.plain_logits(self.model, [*context, *choice[:-1]])
                yield next(found), plain[len(context) - 1 :]

    @torch.inference_mode()
    def _read_opening(self, opening: Tokens) -> DynamicCache:
        """Keys and values of the tokens that a family's contexts begin with."""
        cache = DynamicCache(config=self.model.config)
        if opening:
            ids = torch.tensor([opening], device=self.device)
            self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cache

    def _score_choices(
        self, contexts: list[Tokens], choices: list[list[list[int]]], opening: Tokens, cache: DynamicCache
    ) -> list[tuple[float, bool]]:
        """(log-likelihood, is greedy) of every choice, in order."""
        flat = (choice for group in choices for choice in group)
        return [*map(_choice_score, self._choice_logits(contexts, choices, opening, cache), flat)]

    @torch.inference_mode()
    def _choice_logits(
        self, contexts: list[Tokens], choices: list[list[list[int]]], opening: Tokens, cache: DynamicCache
    ) -> Iterator[torch.Tensor]:
        """Logits before each of a choice's tokens, in order."""
        ids, positions, part = (table.to(self.device) for table in _lay_out_choices(contexts, choices))
        read_before, start = len(opening), max(map(len, contexts)) - 1
        cache = _repeated(cache, len(contexts), self.model.config)
        if start > read_before:  # without a mask: what a short context is filled up with lies behind it
            self.model.base_model(input_ids=ids[:, read_before:start], past_key_values=cache, use_cache=True)
        logits = self.model(
            input_ids=ids[:, start:],
            attention_mask=_mask(part, start=start, dtype=self.model.dtype),
            position_ids=positions[:, start:],
            past_key_values=cache,
            use_cache=True,
        ).logits
        for row, group in zip(logits, choices, strict=True):
            offset = 1
            for choice in group:
                yield torch.cat([row[:1], row[offset : offset + len(choice) - 1]])
                offset += len(choice) - 1


def group_by_prefix(contexts: Iterable[Tokens]) -> Iterator[tuple[Tokens, list[Tokens]]]:
    """(opening, contexts that begin with it, the longest first), where an opening that is worth it is read once.

    Contexts that share nothing worthwhile come last, together, with an empty opening. Every context is longer than its
    opening.
    """
    alike, unshared = defaultdict(list), []
    for context in contexts:
        alike[context[:ALIKE]].append(context)
    for family in alike.values():
        opening = commonprefix([context[:-1] for context in family])
        if len(opening) * (len(family) - 1) >= WORTHWHILE:
            yield opening, sorted(family, key=_longest_first)
        else:
            unshared += family
    if unshared:
        yield (), sorted(unshared, key=_longest_first)


def _longest_first(context: Tokens) -> tuple[int, Tokens]:
    return -len(context), context


def _repeated(cache: DynamicCache, rows: int, config) -> DynamicCache:
    """The cache of one row for so many rows, to be continued; the one row's stays as it is."""
    repeated = DynamicCache(config=config)
    for index, layer in enumerate(cache.layers):
        if layer.is_initialized:
            repeated.update(*(states.expand(rows, -1, -1, -1) for states in (layer.keys, layer.values)), index)
    return repeated


def _lay_out_choices(contexts: list[Tokens], choices: list[list[list[int]]]) -> torch.Tensor:
    """Each context but its last token, filled up to the longest; then that token, and the choices, end to end.

    A choice's last token is left out, as nothing follows it.

    Returns:
        (3, rows, tokens): ids; positions, which start behind the context for each choice; and to which part a token
        belongs: 0 the context, 1, 2, ... a choice, -1 padding.
    """
    longest = max(map(len, contexts))
    width = max(sum(len(choice) - 1 for choice in group) for group in choices)
    table = torch.zeros(3, len(contexts), longest + width, dtype=torch.long)
    table[2] = -1
    for row, (context, group) in enumerate(zip(contexts, choices, strict=True)):
        length, start = len(context), longest
        table[:, row, [*range(length - 1), longest - 1]] = torch.tensor([[*context], [*range(length)], [0] * length])
        for number, choice in enumerate(group, start=1):
            head = choice[:-1]
            places = range(length, length + len(head))
            table[:, row, start : start + len(head)] = torch.tensor([head, places, [number] * len(head)])
            start += len(head)
    return table


def _mask(part: torch.Tensor, *, start: int, dtype: torch.dtype) -> torch.Tensor:
    """What to add to the attention scores of the tokens from `start` on: each sees its context, its choice and itself.

    Returns:
        (rows, 1, tokens - start, tokens)
    """
    query_part, positions = part[:, start:, None], torch.arange(part.shape[1], device=part.device)
    query_positions = positions[start:, None]
    seen = (positions <= query_positions) & ((part[:, None] == 0) | ((part[:, None] == query_part) & (query_part > 0)))
    seen |= positions == query_positions  # padding must see something
    return torch.zeros(seen.shape, dtype=dtype, device=part.device).masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


def _choice_score(logits: torch.Tensor, choice: list[int]) -> tuple[float, bool]:
    """(log-likelihood, is greedy) of a choice from the logits before each of its tokens."""
    log_probs = torch.log_softmax(logits.float(), dim=-1)
    target = torch.tensor(choice, device=log_probs.device)
    return float(log_probs.gather(1, target[:, None]).sum()), bool((log_probs.argmax(dim=-1) == target).all())


def _is_greedy(settings: dict) -> bool:
    """Whether a request asks for the likeliest token at each step and names no setting that changes it."""
    allowed = {"until", "max_gen_toks", "do_sample", "temperature"}
    return not settings.get("do_sample") and not settings.get("temperature") and settings.keys() <= allowed
