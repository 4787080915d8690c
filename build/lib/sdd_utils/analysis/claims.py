"""The paper's claims, and its neighbours' warnings, as comparisons that a study's records can answer.

A claim has one part or more; `verdicts.py` measures them and decides. A new claim is an entry in `claims`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from sdd_utils.analysis import comparisons, published
from sdd_utils.analysis.statistics import CHOICE


@dataclass(frozen=True, kw_only=True)
class Part:
    """One comparison. `measure(records, null=...)` estimates it; `side` is +1 or -1; `size`, if any, the published."""

    what: str
    side: int
    measure: Callable[..., dict]
    size: float | None = None


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim, where it stands, its unit, the steps whose records it needs, and the parts that it consists of.

    A `primary` claim is one of the two questions that a study is sized to answer: does fine-tuning heal, and does
    Self-Data FT forget less? `favours` names the arm that its measure favours by construction, "" where there is none.
    Only a study that has what a claim `needs`, arms or steps that are run on request, is asked it.
    """

    key: str
    claim: str
    source: str
    unit: str
    steps: tuple[str, ...]
    parts: tuple[Part, ...]
    primary: bool = False
    favours: str = ""
    needs: tuple[str, ...] = ()


def _published(key: str) -> float:
    return published.published_number(key).value


OURS = "this project's own question"
_ABSTRACT, TUNED, LEAD = "arXiv 2410.09982, abstract or summary", ("finetuning", "pruning"), "Self-Data FT - SFT"


def merge_parts(merge: str, **which) -> tuple[Part, ...]:
    """A merge's recovery minus that of each parent; `which` merge is `comparisons.merge_over_parent`'s to know."""
    return tuple(
        Part(
            what=f"recovery of {merge} - of its parent at t = {parent:g}",
            side=1,
            measure=partial(comparisons.merge_over_parent, parent=parent, **which),
        )
        for parent in (0.0, 1.0)
    )


def claims(in_domain: dict[str, list]) -> tuple[Claim, ...]:
    """Those that every study is asked, its data sets having these tasks of their own domain; our questions first.

    See `further_claims` for the others.
    """
    healing = tuple(
        Claim(
            key=f"heals_{arm}",
            claim=f"{name} heals the pruned model on tasks it was not trained for.",
            source=OURS,
            unit="% of the loss",
            steps=TUNED,
            primary=True,
            parts=(
                Part(
                    what=f"share of the lost bits per byte that {name} wins back",
                    side=1,
                    measure=partial(comparisons.healed, arm=arm, domains=in_domain),
                ),
            ),
        )
        for arm, name in (("sft", "SFT"), ("self_data_ft", "Self-Data FT"))
    )
    return (
        *healing,
        Claim(
            key="forgets_less",
            claim="Self-Data FT forgets less than SFT, on tasks that neither was trained for.",
            source=_ABSTRACT,
            unit="% of the loss",
            steps=TUNED,
            primary=True,
            parts=(
                Part(
                    what=f"{LEAD} in the share of the lost bits per byte that is won back",
                    side=1,
                    # A lead of so many points of recovery is at least this share of what pruning cost, as it cannot
                    # have cost more than 100 points.
                    size=(_published("recovery_self_data_ft") - _published("recovery_sft")) / 100,
                    measure=partial(comparisons.retention_lead, domains=in_domain),
                ),
            ),
        ),
        Claim(
            key="recovers_more",
            claim="Self-Data FT recovers more than SFT.",
            source=_ABSTRACT,
            unit="points",
            steps=TUNED,
            parts=(Part(what=f"{LEAD} in recovery", side=1, measure=comparisons.recovery_lead),),
        ),
        Claim(
            key="recovers_more_probability",
            claim="The same of the probability of the right choice.",
            source=OURS,
            unit="points",
            steps=TUNED,
            parts=(
                Part(
                    what=f"{LEAD} in recovery of choice probability",
                    side=1,
                    measure=partial(comparisons.recovery_lead, measure=CHOICE),
                ),
            ),
        ),
        Claim(
            key="recovery_lead",
            claim=f"At n = 6 Self-Data FT recovers {_published('recovery_self_data_ft'):g} %, "
            f"SFT {_published('recovery_sft'):g} %.",
            source=_ABSTRACT,
            unit="points",
            steps=TUNED,
            parts=(
                Part(
                    what=f"{LEAD} in recovery, where the share cut is nearest to the paper's",
                    side=1,
                    size=(_published("recovery_self_data_ft") - _published("recovery_sft")) / 100,
                    measure=comparisons.recovery_lead_at_cut,
                ),
            ),
        ),
        Claim(
            key="gain",
            claim=f"Self-Data FT gains up to {_published('gain'):g} % (taken as points) over SFT in average accuracy.",
            source=_ABSTRACT,
            unit="points",
            steps=TUNED,
            parts=(
                Part(
                    what=f"{LEAD} in average score, largest gain",
                    side=1,
                    size=_published("gain") / 100,
                    measure=comparisons.gain_over_loss,
                ),
            ),
        ),
        Claim(
            key="stays_closer",
            claim="Self-Data FT stays closer to the original's distribution than SFT (KL on the original's answers).",
            source=_ABSTRACT,
            unit="nats per token",
            steps=("finetuning",),
            favours="Self-Data FT",
            parts=(
                Part(
                    what=f"{LEAD} in KL from the original's next token",
                    side=-1,
                    measure=comparisons.divergence_difference,
                ),
            ),
        ),
        Claim(
            key="similarity",
            claim="Answers of Self-Data FT stay closer to the original's: mean embedding similarity "
            f"{_published('embedding_self_data_ft'):g}, SFT {_published('embedding_sft'):g}.",
            source=_ABSTRACT,
            unit="cosine",
            steps=("embedding_similarity",),
            favours="Self-Data FT",
            parts=(
                Part(
                    what=f"{LEAD} in cosine to the original's answers",
                    side=1,
                    size=_published("embedding_self_data_ft") - _published("embedding_sft"),
                    measure=partial(comparisons.cosine, arm="self_data_ft", minus="sft"),
                ),
            ),
        ),
        Claim(
            key="scaling",
            claim="More distilled data gives better recovery.",
            source=_ABSTRACT,
            unit="points",
            steps=TUNED,
            parts=(
                Part(what="recovery of Self-Data FT, most rows - fewest rows", side=1, measure=comparisons.more_rows),
            ),
        ),
        Claim(
            key="merging",
            claim="The SLERP of models distilled on different data sets recovers more than each alone.",
            source=_ABSTRACT,
            unit="points",
            steps=("merging", "pruning"),
            parts=merge_parts("the SLERP"),
        ),
        Claim(
            key="gsm8k",
            claim="SFT on GSM8K lifts GSM8K and drops ARC-C and MMLU below No FT.",
            source="second-hand, not read in the paper",
            unit="points",
            steps=TUNED,
            parts=tuple(
                Part(
                    what=f"SFT - No FT in score on {task}",
                    side=side,
                    measure=partial(comparisons.over_no_ft, data_set="gsm8k", task=task),
                )
                for task, side in (("gsm8k", 1), ("arc_challenge", -1), ("mmlu", -1))
            ),
        ),
        Claim(
            key="in_domain",
            claim="At high LoRA capacity SFT beats Self-Data FT in the domain of the training data.",
            source="the parent method's repository, github.com/sail-sg/sdft, issue 15",
            unit="points",
            steps=TUNED,
            parts=(
                Part(
                    what=f"{LEAD} in score on in-domain tasks",
                    side=-1,
                    measure=partial(comparisons.in_domain, domains=in_domain, rank=64),
                ),
            ),
        ),
        Claim(
            key="cut",
            claim=f"Removing 6 layers of Llama-3.1-8B cuts {_published('cut_n6'):.2f} % (of its parameters).",
            source=_ABSTRACT,
            unit="points",
            steps=("pruning",),
            parts=(
                Part(
                    what="share of parameters cut",
                    side=1,
                    size=_published("cut_n6") / 100,
                    measure=comparisons.share_cut,
                ),
            ),
        ),
    )
