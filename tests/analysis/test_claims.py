"""Verdicts on made-up studies whose truth is known; every claim is answered, with numbers or with what is lacking."""

import json
import re
from itertools import product

import numpy as np
import pytest
import study_records

from sdd_utils import ROOT
from sdd_utils.analysis import claims, comparisons, power, verdicts
from sdd_utils.base.number_format import amount
from sdd_utils.base.records import records_by_file
from sdd_utils.report.tables import claims_table

DOMAINS = {"gsm8k": ["gsm8k"]}
DOCUMENTS, TASKS = 400, ("gsm8k", "arc_challenge", "mmlu")


def score(documents):
    return study_records.score(documents, chance=0.25, gold_bits_per_byte=study_records.measured(2.0 - documents))


class World:
    """A study whose models answer a document right with a probability that the test names."""

    def __init__(self, *, seeds=3, model="org/Llama-3.1-8B-Instruct", pruned=0.5):
        self.rng, self.seeds, self.records = np.random.default_rng(0), range(seeds), {}
        self.luck = {task: self.rng.random(DOCUMENTS) for task in TASKS}  # shared: a document is hard for every model
        for n, ability in ((0, 0.8), (6, pruned)):
            accounting = {"layers": 32 - n, "parameters": 8 - n, "cut_parameters": 0.162963 * n / 6, "cut_matmul": 0.1}
            metrics = {"scores": self.scores(ability), "accounting": accounting}
            self.add("pruning", f"n{n}", {"block_size": n, "model": model}, metrics)

    def scores(self, abilities):
        abilities = abilities if isinstance(abilities, dict) else dict.fromkeys(TASKS, abilities)
        noise = {task: 0.1 * self.rng.standard_normal(DOCUMENTS) for task in TASKS}
        return {task: score((self.luck[task] + noise[task] < abilities[task]).astype(float)) for task in TASKS}

    def add(self, step, name, params, metrics):
        self.records[f"{step}-{name}.json"] = {"step": step, "params": params, "metrics": metrics}

    def tune(self, data_set, *, rows=100, rank=16, divergence=None, **abilities):
        for seed in self.seeds:
            arms = {
                arm: {"training": {"rows": rows}, "scores": self.scores(a), "fidelity": {}}
                for arm, a in abilities.items()
            }
            for arm, mean in (divergence or {}).items():
                tokens = self.rng.integers(5, 50, 60)
                kl = tokens * (mean + 0.02 * self.rng.standard_normal(60))
                documents = np.stack([kl, kl, tokens], axis=1).tolist()
                arms[arm]["fidelity"] = {data_set: {"documents": documents}}
            params = {"block_size": 6, "data_set": data_set, "seed": seed, "capacity": "" if rank == 16 else f"r{rank}"}
            params |= {"lora_rank": rank, "lora_alpha": 32, "lora_targets": "all-linear"}
            self.add("finetuning", f"{data_set}-{rows}-{rank}-{seed}", params, {"arms": arms})

    def draft(self, data_set, **acceptances):
        """The fine-tuned models of this data set as drafts."""
        drafts = {}
        for seed, (arm, share) in product(self.seeds, acceptances.items()):
            tokens = self.rng.integers(20, 50, 60)
            sums = tokens * (share + 0.02 * self.rng.standard_normal((2, 60)))
            acceptance = {data_set: {"documents": np.stack([*sums, tokens], axis=1).tolist()}}
            draft = {"arm": arm, "block_size": 6, "data_set": data_set, "seed": seed, "acceptance": acceptance}
            drafts[f"{data_set}-{seed}-{arm}"] = draft
        self.add("speculative_decoding", "all", {}, {"drafts": drafts})

    def answers(self):
        return {answer["key"]: answer for answer in verdicts.judge_claims(self.records, in_domain=DOMAINS)}


def test_a_clear_lead_holds_and_its_absence_does_not():
    world = World()
    world.tune("gsm8k", sft=0.55, self_data_ft=0.67, divergence={"sft": 0.5, "self_data_ft": 0.3})
    found = world.answers()
    lead = found["recovers_more"]
    assert (lead["verdict"], lead["n"]) == ("holds", {"seeds": 3, "documents": 3 * DOCUMENTS})
    assert lead["estimate"] == pytest.approx(0.12 / 0.8, abs=0.05)
    assert lead["interval"][0] < 0.12 / 0.8 < lead["interval"][1]
    assert found["recovery_lead"]["verdict"] == found["gain"]["verdict"] == "holds"
    assert found["stays_closer"]["verdict"] == "holds"
    assert found["stays_closer"]["estimate"] == pytest.approx(-0.2, abs=0.02)
    assert found["cut"]["verdict"] == "holds"

    for data_set in ("gsm8k", "alpaca", "dolly"):
        world.tune(data_set, sft=0.6, self_data_ft=0.6, divergence={"sft": 0.3, "self_data_ft": 0.5})
    found = world.answers()
    assert found["recovers_more"]["verdict"] == "inconclusive"
    assert "four cases of five" in found["recovers_more"]["why"]
    assert found["recovery_lead"]["verdict"] == "does not hold"  # 9.5 points can be excluded
    assert found["recovery_lead"]["why"].endswith("less than the published +9.5.")
    assert found["stays_closer"]["verdict"] == "does not hold"


def test_arms_that_learnt_the_same_rows_are_not_compared():
    world = World()
    world.tune("gsm8k", sft=0.6, self_data_ft=0.6, divergence={"sft": 0.3, "self_data_ft": 0.3})
    for record in world.records.values():
        if record["step"] == "finetuning":
            record["metrics"]["arms"]["self_data_ft"] = record["metrics"]["arms"]["sft"]
    world.add("distillation", "gsm8k", {"data_set": "gsm8k"}, {"sets": {"distilled": {"fallback_rate": 1.0}}})
    found = world.answers()
    for key in ("forgets_less", "recovers_more", "recovery_lead", "gain", "stays_closer"):
        assert (found[key]["verdict"], found[key]["estimate"]) == ("inconclusive", 0), key
        assert found[key]["why"].endswith("so there is nothing to test with.")
    assert found["heals_sft"]["verdict"] == "holds"
    assert (found["heals_self_data_ft"]["verdict"], found["heals_self_data_ft"]["estimate"]) == ("inconclusive", None)
    assert "No rewrite was kept" in found["heals_self_data_ft"]["why"]


def test_a_single_document_decides_nothing():
    world = World()
    world.tune("gsm8k", sft=0.6, self_data_ft=0.7)
    for record in world.records.values():
        models = record["metrics"].get("arms", {"untuned": record["metrics"]}).values()
        for model in models:
            model["scores"] = {
                task: score(np.array(own["accuracy"]["documents"][:1])) for task, own in model["scores"].items()
            }
    assert {answer["verdict"] for key, answer in world.answers().items() if key != "cut"} == {"inconclusive"}


def test_where_pruning_lost_nothing_no_size_of_a_gain_is_refuted():
    world = World(pruned=0.8)
    world.tune("gsm8k", sft=0.8, self_data_ft=0.8)
    found = world.answers()
    for key in ("recovery_lead", "gain"):
        assert found[key]["verdict"] == "inconclusive"
        assert "the average shows no loss that could be recovered" in found[key]["why"]
    assert found["recovers_more"]["estimate"] is not None


def test_a_task_that_no_model_solves_says_so():
    world = World()
    world.tune("gsm8k", sft=dict.fromkeys(TASKS, 0.5) | {"gsm8k": -9.0}, self_data_ft=0.5)
    for record in world.records.values():  # nor does the pruned model
        if record["params"].get("block_size") == 6 and record["step"] == "pruning":
            record["metrics"]["scores"]["gsm8k"] = score(np.zeros(DOCUMENTS))
    part = world.answers()["gsm8k"]["parts"][0]
    assert (part["estimate"], part["se"]) == (0, 0)
    assert verdicts._why(part, "points", "inconclusive").endswith("so there is nothing to test with.")


def test_an_open_claim_says_what_would_settle_it():
    measured = {"what": "a", "where": "b", "estimate": 0.02, "interval": [-0.02, 0.06], "p": 0.3, "p_holm": 0.9}
    measured |= {"seed_se": 0.01, "document_se": 0.02, "interaction_se": 0.005, "se": 0.02, "level": 0.95, "seeds": 3}
    measured |= {"df": {"seeds": 2.0, "documents": 99.0}, "cells": 1, "documents": 100, "size": None, "side": 1}
    measured["detectable"] = power.detectable(measured, seeds=3, documents=100)
    why = verdicts._why(measured, "points", "inconclusive")
    found = re.search(r"takes (?:.* or )?(\d+) seeds and (\d+) documents, before that correction\.$", why)
    seeds, documents = map(int, found.groups())
    assert power.detectable(measured, seeds=seeds, documents=documents) <= 0.02
    assert power.detectable(measured, seeds=seeds - 1, documents=documents - 34) > 0.02
    assert "out of reach" in verdicts._why(measured | {"estimate": 1e-6}, "points", "inconclusive")
    assert "correction for several" in verdicts._why(measured | {"estimate": 0.5}, "points", "inconclusive")


def test_fewer_than_three_seeds_tell_nothing():
    world = World(seeds=2)
    world.tune("gsm8k", sft=0.4, self_data_ft=0.7)
    lead = world.answers()["recovers_more"]
    assert lead["verdict"] == "inconclusive"
    assert "Training seeds: 2" in lead["why"]
    assert lead["p_holm"] < 0.05  # the documents alone would have told


def test_a_published_gain_is_refuted_only_where_every_cell_falls_short():
    world = World()
    world.tune("gsm8k", sft=0.55, self_data_ft=0.64)
    sure = comparisons.largest_gain([*world.records.values()], null=0.3)
    for seed, ability in enumerate((0.4, 0.65, 0.75)):  # seeds apart: this cell may gain as much
        world.seeds = [seed]
        world.tune("alpaca", sft=0.55, self_data_ft=ability)
    both = comparisons.largest_gain([*world.records.values()], null=0.3)
    assert sure["p"] < 0.05 < both["p"]
    assert both["where"].endswith("on gsm8k, the best of 2")
    assert comparisons.largest_gain([*world.records.values()])["p"] < 0.05  # against 0 the best cell decides


def test_answers_of_the_own_domain_are_asked_where_they_are_counted():
    world, others = World(), dict.fromkeys(("arc_challenge", "mmlu"), 0.3)
    world.tune("gsm8k", sft=others | {"gsm8k": 0.5}, self_data_ft=others | {"gsm8k": 0.7})
    assert world.answers()["in_domain_answers"]["verdict"] == "holds"
    elsewhere = verdicts.judge_claims(world.records, in_domain={"gsm8k": ["gsm8k_gold"]})
    assert "in_domain_answers" not in {answer["key"] for answer in elsewhere}


def test_the_cloze_form_stands_in_for_letters_that_are_not_scored():
    world = World()
    world.tune("gsm8k", sft={"gsm8k": 0.7, "arc_challenge": 0.35, "mmlu": 0.35}, self_data_ft=0.5)
    letters = world.answers()["gsm8k"]
    for record in world.records.values():
        for model in record["metrics"].get("arms", {"untuned": record["metrics"]}).values():
            model["scores"]["mmlu_continuation"] = model["scores"].pop("mmlu")
    cloze = world.answers()["gsm8k"]
    assert [part["estimate"] for part in cloze["parts"]] == [part["estimate"] for part in letters["parts"]]
    assert cloze["parts"][2]["where"] == f"{letters['parts'][2]['where']} (its cloze form)"


def test_all_parts_of_a_claim_have_to_hold():
    world = World()
    world.tune("gsm8k", sft={"gsm8k": 0.7, "arc_challenge": 0.35, "mmlu": 0.35}, self_data_ft=0.5)
    assert world.answers()["gsm8k"]["verdict"] == "holds"
    world.tune("gsm8k", sft={"gsm8k": 0.7, "arc_challenge": 0.35, "mmlu": 0.65}, self_data_ft=0.5)
    found = world.answers()["gsm8k"]
    assert (found["verdict"], len(found["parts"])) == ("does not hold", 3)
    assert found["why"].startswith("SFT - No FT in score on mmlu")


def test_capacity_and_number_of_rows_are_their_own_comparisons():
    world = World()
    world.tune("gsm8k", sft=0.55, self_data_ft=0.65)
    world.tune("gsm8k", rows=25, sft=0.5, self_data_ft=0.5)
    assert world.answers()["in_domain"]["why"] == "No fine-tuning has rank 64 or more on all linear layers."
    world.tune("gsm8k", rank=64, sft={"gsm8k": 0.75, "arc_challenge": 0.4, "mmlu": 0.4}, self_data_ft=0.6)
    found = world.answers()
    assert found["scaling"]["verdict"] == found["in_domain"]["verdict"] == "holds"
    assert found["in_domain"]["n"]["documents"] == DOCUMENTS  # the in-domain task alone
    assert found["recovers_more"]["verdict"] == "holds"  # rank 64 stays out


def test_a_merge_has_to_beat_both_parents():
    world = World()
    for seed in world.seeds:
        world.tune("gsm8k", sft=0.5, self_data_ft=0.5)
        points = [{"t": t, "scores": world.scores(a)} for t, a in ((0.0, 0.5), (0.5, 0.65), (1.0, 0.65))]
        params = {"block_size": 6, "data_set": "gsm8k", "other_data_set": "alpaca", "seed": seed}
        world.add("merging", str(seed), params, {"points": points})
    found = world.answers()["merging"]
    assert (found["verdict"], found["parts"][0]["p_holm"] < 0.05) == ("inconclusive", True)
    assert found["records"] == [name for name in world.records if name.startswith(("merging", "pruning"))]
    assert "merging_task_vectors" not in world.answers()
    for record in world.records.values():
        if record["step"] == "merging":
            better = [point | {"scores": world.scores(0.8)} if point["t"] == 0.5 else point for point in points]
            record["metrics"]["task_vectors"] = {"points": better}
    assert world.answers()["merging_task_vectors"]["verdict"] == "holds"


def test_similarity_averages_block_sizes_before_it_tests():
    world = World()
    for n in (4, 6):
        for seed in world.seeds:
            cosines = 0.6 + 0.1 * world.rng.standard_normal(50)
            arms = {
                "sft": {"greedy": {"similarities": cosines.tolist()}},
                "self_data_ft": {"greedy": {"similarities": (cosines + 0.1).tolist()}},
            }
            params = {"block_size": n, "data_set": "openmathinstruct2", "seed": seed}
            world.add("embedding_similarity", f"{n}-{seed}", params, {"arms": arms})
    measured = comparisons.cosine(list(world.records.values()), arm="self_data_ft", minus="sft")
    assert (measured["estimate"], measured["documents"]) == (pytest.approx(0.1), 50)


def test_amounts_are_told_in_their_unit():
    assert [amount(value, "points") for value in (0.0123, -0.0001)] == ["+1.2", "+0.0"]
    assert amount(-0.0214, "cosine") == "-0.021"


@pytest.mark.parametrize(("self_data_ft", "verdict"), [(0.7, "holds"), (0.6, "inconclusive"), (0.5, "does not hold")])
def test_drafts_that_are_accepted_more_often_are_found(self_data_ft, verdict):
    world = World()
    assert "accepted_drafts" not in world.answers()  # nobody asked
    world.draft("gsm8k", sft=0.6, self_data_ft=self_data_ft)
    answer = world.answers()["accepted_drafts"]
    assert answer["verdict"] == verdict
    assert answer["estimate"] == pytest.approx(self_data_ft - 0.6, abs=0.01)
    assert answer["records"] == ["speculative_decoding-all.json"]


def test_drafts_of_one_arm_alone_say_what_is_lacking():
    world = World()
    world.draft("gsm8k", self_data_ft=0.6)
    answer = world.answers()["accepted_drafts"]
    assert (answer["verdict"], answer["estimate"]) == ("inconclusive", None)
    assert "both SFT and Self-Data FT" in answer["why"]


def test_every_claim_is_answered_and_can_be_written():
    answers = World(model="org/other").answers()
    assert list(answers) == [claim.key for claim in claims.claims({})]
    for answer in answers.values():
        assert (answer["verdict"], answer["estimate"], answer["parts"]) == ("inconclusive", None, [])
        assert answer["why"].endswith(".")
    assert "org/other are 16.30 %" in answers["cut"]["why"]
    world = World()
    world.tune("gsm8k", sft=0.5, self_data_ft=0.6, divergence={"sft": 0.3, "self_data_ft": 0.5})
    json.dumps(verdicts.judge_claims(world.records, in_domain=DOMAINS), allow_nan=False)


def test_claims_about_further_arms_are_asked_of_studies_that_have_them():
    plain, world = World(), World()
    plain.tune("gsm8k", sft=0.5, self_data_ft=0.6)
    world.tune("gsm8k", sft=0.5, self_data_ft=0.7, logit_kd=0.55, text_kd=0.6)
    more = set(world.answers()) - set(plain.answers())
    assert more == {"beats_logit_kd", "plain_text"}
    assert list(plain.answers()) == [*(claim.key for claim in claims.claims({})), "in_domain_answers"]
    assert {answer["verdict"] for key, answer in world.answers().items() if key in more} == {"holds"}
    assert "Self-Data FT - logit KD in the share" in world.answers()["beats_logit_kd"]["why"]
    everywhere = {"gsm8k": ["gsm8k"], "dolly": ["mmlu"]}  # its plain text may be of either
    text = next(a for a in verdicts.judge_claims(world.records, in_domain=everywhere) if a["key"] == "plain_text")
    assert (text["n"]["documents"], world.answers()["plain_text"]["n"]["documents"]) == (DOCUMENTS, 2 * DOCUMENTS)
    turned = World()
    turned.tune("gsm8k", sft=0.5, self_data_ft=0.55, logit_kd=0.7, text_kd=0.5)
    assert turned.answers()["beats_logit_kd"]["verdict"] == "does not hold"


def test_answers_stand_in_a_table_with_the_number_that_decides():
    found = {"claim": "A.", "verdict": "holds", "unit": "points", "estimate": 0.012, "interval": [0.001, 0.02]}
    found |= {"favours": "SFT", "p_holm": 0.0301, "n": {"seeds": 3, "documents": 9}}
    lacking = {"claim": "B.", "verdict": "inconclusive", "unit": "points", "interval": None, "favours": ""}
    table = claims_table([found, lacking])
    assert list(table["ours"]) == ["+1.2 points [+0.1, +2.0]", "-"]
    assert list(table["p (Holm)"]) == ["0.03", "-"]


def test_the_committed_study_is_answered():

    records = records_by_file(ROOT / "results" / "embedded" / "records")
    found = {answer["key"]: answer for answer in verdicts.judge_claims(records, in_domain={})}
    assert set(found["recovers_more"]["records"]) <= set(records)
