"""Claims that only some studies are asked: of arms and steps that a study has on request."""

from collections.abc import Callable
from functools import partial

from sdd_utils.analysis import comparisons, layer_damage, speculation
from sdd_utils.analysis.claims import LEAD, OURS, TUNED, Claim, Part, merge_parts
from sdd_utils.analysis.forgetting import tasks_of_domains
from sdd_utils.base.strategies import PAPERS


def further_claims(in_domain: dict[str, list]) -> tuple[Claim, ...]:
    """All of them, for a study whose data sets have these tasks of their own domain; see `Claim.needs`."""
    return (_of_answers(in_domain), *_of_distillation(in_domain), _of_task_vectors(), _of_drafts(), *_of_selection())


def _of_answers(in_domain: dict[str, list]) -> Claim:
    """On answers that are written and counted right or wrong, which neither arm's style favours."""
    return Claim(
        key="in_domain_answers",
        claim="Self-Data FT answers more questions of its data's own domain right than SFT.",
        source=OURS,
        unit="points",
        steps=TUNED,
        needs=("in-domain accuracy",),
        parts=(
            Part(
                what=f"{LEAD} in accuracy on in-domain tasks",
                side=1,
                measure=partial(comparisons.in_domain, domains=in_domain),
            ),
        ),
    )


def _of_distillation(in_domain: dict[str, list]) -> tuple[Claim, ...]:
    """What is asked of arms that learn by a divergence from the original."""
    lead = partial(comparisons.retention_lead, domains=in_domain)
    # Its text may be of any set of the study, so no domain that is named is out of its own.
    named = sorted(tasks_of_domains(in_domain))
    own = partial(comparisons.healed, arm="text_kd", domains=dict.fromkeys(in_domain, named))
    return (
        _heals_more("beats_logit_kd", "Self-Data FT", "logit KD", ("self_data_ft", "logit_kd"), OURS, lead),
        _heals_more("distributions", "self-data KD", "Self-Data FT", ("self_data_kd", "self_data_ft"), OURS, lead),
        _heals_more("own_answers", "on-policy KD", "logit KD", ("on_policy", "logit_kd"), "arXiv 2607.13124", lead),
        _healing_claim(
            "plain_text",
            "Logit KD on plain text heals the pruned model.",
            "NVIDIA Model-Optimizer's pruning examples",
            ("text_kd",),
            "share of the lost bits per byte that text KD wins back",
            own,
        ),
    )


def _heals_more(
    key: str, first: str, second: str, arms: tuple[str, str], source: str, lead: Callable[..., dict]
) -> Claim:
    """A claim that the first of two arms heals more, out of the domain of the data."""
    what = f"{first} - {second} in the share of the lost bits per byte that is won back"
    claim = f"{first[0].upper()}{first[1:]} beats {second} at equal tokens."
    return _healing_claim(key, claim, source, arms, what, partial(lead, arms=arms))


def _healing_claim(
    key: str, claim: str, source: str, arms: tuple[str, ...], what: str, measure: Callable[..., dict]
) -> Claim:
    part = Part(what=what, side=1, measure=measure)
    return Claim(key=key, claim=claim, source=source, unit="% of the loss", steps=TUNED, parts=(part,), needs=arms)


def _of_task_vectors() -> Claim:
    """On merges of what training changed, whose angles are not near 0 as those of whole weights are."""
    return Claim(
        key="merging_task_vectors",
        claim="The SLERP of their task vectors recovers more than each model alone.",
        source=OURS,
        unit="points",
        steps=("merging", "pruning"),
        needs=("merging", "task_vectors"),
        parts=merge_parts("the SLERP of task vectors", task_vectors=True),
    )


def _of_drafts() -> Claim:
    """On what the original accepts of a pruned model's tokens."""
    return Claim(
        key="accepted_drafts",
        claim="In speculative decoding, drafts by Self-Data FT are accepted more often than SFT's.",
        source=OURS,
        unit="points",
        steps=("speculative_decoding",),
        favours="Self-Data FT",
        needs=("speculative_decoding",),
        parts=tuple(
            Part(
                what=f"{LEAD} in {measure.replace('_', ' ')} on the original's answers",
                side=1,
                measure=partial(comparisons.acceptance_lead, measure=measure),
            )
            for measure in speculation.MEASURES
        ),
    )


def _of_selection() -> tuple[Claim, ...]:
    """On how layers are chosen, without fine-tuning."""
    asked = {
        "random": ("As many random layers damage more than the paper's block.", OURS, 1, PAPERS),
        "deepest_but_last": (
            "Without fine-tuning, the block before the last layer damages more than the paper's block.",
            "arXiv 2403.17887",
            1,
            PAPERS,
        ),
        "block_influence": ("Layers of least Block Influence damage less than the paper's block.", OURS, -1, PAPERS),
        "iterative": (
            "Measured again after each cut, layers of least Block Influence damage less than all at once.",
            OURS,
            -1,
            "block_influence",
        ),
    }
    return tuple(
        Claim(
            key=f"selection_{strategy}",
            claim=claim,
            source=source,
            unit="bits per byte",
            steps=("selection", "pruning"),
            needs=("selection",),
            parts=(
                Part(
                    what=f"bits per byte lost, {strategy} - {minus}",
                    side=side,
                    measure=partial(layer_damage.strategy_difference, strategy=strategy, minus=minus),
                ),
            ),
        )
        for strategy, (claim, source, side, minus) in asked.items()
    )
