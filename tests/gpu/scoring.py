"""Our lm-eval model beside lm-eval's HFLM, and fidelity beside plain passes."""

import torch
from gpu.measure import Setup, computing_in, entry, equality, products, timed
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from benchmarks import some_rows
from sdd_utils.data.rows import question_of
from sdd_utils.engine.lm_eval_model import SharedContextLM
from sdd_utils.engine.lm_eval_task import evaluate_task
from sdd_utils.models import chat_format, store
from sdd_utils.steps import evaluation, fidelity

CHOICES, TEXTS = "facts", "gsm_symbolic"


class Counting(SharedContextLM):
    """Notes the tokens that have to be read: each context once, and of its choices all but their last tokens."""

    def _likelihoods(self, requests, **settings):
        contexts = {tuple(context) for _, context, _ in requests}
        self.scored = sum(len(choice) for _, _, choice in requests)
        self.read = sum(map(len, contexts)) + self.scored - len(requests)
        return super()._likelihoods(requests, **settings)


def evaluate(setup: Setup) -> list[dict]:
    """Multiple choice in bfloat16 for speed; in float32 log-likelihoods and texts beside HFLM's."""
    size, manager = setup.size, TaskManager(include_path=str(evaluation.TASKS), include_defaults=False)
    asked = {"manager": manager, "shots": size["shots"], "chat": False}
    with computing_in("bfloat16"):
        ours = wrapped(Counting, setup)
        score = lambda: evaluate_task(ours, CHOICES, limit=size["documents"], **asked)  # noqa: E731
        served = ours._shares_contexts()
        _, seconds = timed(score, turns=size["turns"])
    flops = products(ours.model.config, read=ours.read, predicted=ours.scored)
    work = f"{size['documents']} documents of {CHOICES}, {size['shots']} shots, {ours.read} tokens read"
    made = entry("evaluation", rate=setup.rate, tokens=ours.read, flops=flops, seconds=seconds, work=work)
    made["served"] = {"shared contexts": served}
    with computing_in("float32"):
        both = [wrapped(kind, setup) for kind in (SharedContextLM, HFLM)]
        few = {"limit": size["exact_documents"], **asked}
        found, expected = (evaluate_task(one, CHOICES, **few) for one in both)
        texts = [evaluate_task(one, TEXTS, **few | {"limit": size["exact_texts"], "shots": 1}) for one in both]
    made["equalities"] = [
        equality("log-likelihoods of our lm-eval model and of HFLM", gap(found, expected), allowed=1e-3, unit="nats"),
        equality("scores of both", values_apart(found, expected), allowed=0, unit="values that differ"),
        equality("generated answers of both", texts_apart(*texts), allowed=0, unit="texts that differ"),
    ]
    return [made]


def wrapped(kind: type[HFLM], setup: Setup) -> HFLM:
    """The original as lm-eval's model of one kind, as `evaluation.score_loaded_model` has it."""
    model, tokenizer = store.load_model(setup.model)
    settings = {"batch_size": setup.size["evaluation_batch"], "device": str(model.device)}
    return kind(pretrained=model, tokenizer=tokenizer, **settings)


def _samples(results: dict) -> list[dict]:
    (samples,) = results["samples"].values()
    return sorted(samples, key=lambda sample: (sample["filter"], sample["doc_id"]))


def gap(found: dict, expected: dict) -> float:
    """The largest difference of a log-likelihood."""
    likelihoods = [
        torch.tensor([float(choice[0][0]) for sample in _samples(results) for choice in sample["resps"]])
        for results in (found, expected)
    ]
    return float((likelihoods[0] - likelihoods[1]).abs().max())


def values_apart(found: dict, expected: dict) -> int:
    """How many of lm-eval's values differ."""
    (ours,), (theirs,) = (results["results"].values() for results in (found, expected))
    return sum(ours.get(key) != value for key, value in theirs.items() if "," in key)


def texts_apart(found: dict, expected: dict) -> int:
    """How many answers differ, counted once per filter."""
    pairs = zip(_samples(found), _samples(expected), strict=True)
    return sum(ours["resps"] != theirs["resps"] for ours, theirs in pairs)


def compare(setup: Setup) -> list[dict]:
    """Fidelity of the pruned model in bfloat16 for speed, in float32 beside plain passes of both models."""
    size = setup.size
    with computing_in("bfloat16"):
        models, tokenizer, rows = loaded(setup)
        read = lambda: fidelity.measure_fidelity(*models, tokenizer, {"rows": rows})  # noqa: E731
        _, seconds = timed(read, turns=size["turns"])
    lengths = [[*map(len, fidelity.token_ids(tokenizer, row))] for row in rows]
    tokens, answered = sum(map(sum, lengths)), sum(length for _, length in lengths)
    flops = sum(products(model.config, read=tokens, predicted=answered) for model in models)
    work = f"{len(rows)} answers read by two models, {answered} of {tokens} tokens compared"
    made = entry("fidelity", rate=setup.rate, tokens=2 * tokens, flops=flops, seconds=seconds, work=work)
    with computing_in("float32"):
        models, tokenizer, rows = loaded(setup)
        few = rows[: size["exact_rows"]]
        found = fidelity.measure_fidelity(*models, tokenizer, {"rows": few})["rows"]["documents"]
        plain = [plain_document(*models, tokenizer, row) for row in few]
    apart = torch.tensor([[one / length for one in sums] for *sums, length in found]) - torch.tensor(plain)
    name = "likelihood and KL of fidelity and of plain passes"
    made["equalities"] = [equality(name, float(apart.abs().max()), allowed=1e-4, unit="nats per token")]
    return [made]


def loaded(setup: Setup) -> tuple[list, object, list[dict]]:
    """(original and pruned model, tokenizer, data rows as answers with their prompts)."""
    (original, tokenizer), (pruned, _) = (store.load_model(name) for name in (setup.model, setup.pruned))
    rows = [{"text": row["response"], "finish": "stop"} | row for row in some_rows.load(setup.size["answers"])]
    for row in rows:
        row["prompt"] = chat_format.render(tokenizer, [{"role": "user", "content": question_of(row)}])
    return [original, pruned], tokenizer, rows


@torch.no_grad()
def plain_document(original, model, tokenizer, row: dict) -> list[float]:
    """[mean NLL, mean KL] of an answer's tokens by transformers' own passes and the definition."""
    prompt = tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
    answer = tokenizer(row["text"], add_special_tokens=False)["input_ids"] + [chat_format.turn_end(tokenizer)]
    ids = torch.tensor([prompt + answer], device=model.device)
    expected, found = (one(ids).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1) for one in (original, model))
    nll = -found[range(len(answer)), answer].mean()
    return [float(nll), float((expected.exp() * (expected - found)).sum(-1).mean())]
