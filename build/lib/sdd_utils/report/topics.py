"""What a study reports, topic by topic: each has its tables, figures and, here and there, a sentence.

Everything is made from the records, so notebook 09 and `make figures` give the same, and no model is needed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import Markdown, display
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from sdd_utils.analysis import answer_shift, forgetting, layer_damage, model_grid, power, verdicts
from sdd_utils.analysis.model_grid import original_scores
from sdd_utils.analysis.statistics import CHOICE, HAS_CHANCE, averaged_tasks, left_out
from sdd_utils.base.files import write_json
from sdd_utils.base.records import of_step
from sdd_utils.report import (
    figures,
    job_figures,
    job_tables,
    paper_table,
    power_views,
    quantization_views,
    score_figures,
    selection_views,
    speculation_views,
    tables,
)


@dataclass(kw_only=True)
class Topic:
    """Tables and figures by the names of their files, and a text in Markdown."""

    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)
    text: str = ""
    show_tables: bool = True  # not where the text says all that they do


class StudyReport:
    """All that a study's records say.

    Raises ValueError where the records were computed in different precisions: their scores do not compare.

    Args:
        records: by file name; one of step `results`, which this makes, is left out.
        in_domain: the tasks of each data set's domain, by data set.
        folder: where tables, figures and claims.json go.
    """

    def __init__(self, records: dict[str, dict], *, in_domain: dict[str, list], folder: Path):
        self.named = {name: record for name, record in records.items() if record["step"] != "results"}
        self.records, self.in_domain, self.folder = list(self.named.values()), in_domain, folder
        _check_precision(self.named)

    @cached_property
    def original(self) -> dict[str, dict]:
        """The original's scores by task."""
        return original_scores(self.records)

    @cached_property
    def rows(self) -> list[dict]:
        """A row per model, see `model_grid.model_grid` and `forgetting.with_domains`."""
        return forgetting.with_domains(model_grid.model_grid(self.records), self.original, self.in_domain)

    @cached_property
    def claims(self) -> list[dict]:
        """The answer to every claim, see `verdicts.judge_claims`."""
        return verdicts.judge_claims(self.named, in_domain=self.in_domain)

    @cached_property
    def power(self) -> list[dict]:
        """What each comparison can see, see `analysis.power.power_entries`."""
        return power.power_entries(self.claims)

    def show(self, name: str) -> None:
        """Write a topic's tables and figures, and display them with its text."""
        topic = self.write(name)
        shown = [_captioned(*table) for table in topic.tables.items()] if topic.show_tables else []
        for part in (*shown, *topic.figures.values()):
            display(part)
        if topic.text:
            display(Markdown(topic.text))

    def write(self, name: str, *, suffixes: tuple[str, ...] = ("png",)) -> Topic:
        """Write a topic's tables as Markdown and CSV and its figures as PNG, or as these kinds of files."""
        topic = TOPICS[name](self)
        for stem, table in topic.tables.items():
            tables.write_table(table, self.folder / "tables", stem)
        for stem, drawn in topic.figures.items():
            self._keep_figure(drawn, stem, suffixes)
        if name == "claims":
            write_json(self.folder / "claims.json", self.claims)
        return topic

    def write_all(self, *, suffixes: tuple[str, ...] = ("png",)) -> None:
        """Every topic, and the figures of single jobs."""
        for name in TOPICS:
            self.write(name, suffixes=suffixes)
        for stem, drawn in job_figures.job_figures(self.named):
            self._keep_figure(drawn, stem, suffixes)

    def _keep_figure(self, drawn: Figure, name: str, suffixes: tuple[str, ...]) -> None:
        for suffix in suffixes:
            figures.save(drawn, self.folder / "figures", name, suffix=suffix)
        plt.close(drawn)  # else a notebook shows it once more at the end of its cell

    def summary(self) -> dict:
        """The metrics of the record of 09; documents' scores stay in the jobs' records."""
        differences = model_grid.differences(self.rows, self.original)
        shift = answer_shift.shift_correlation(answer_shift.shift_points(self.records))
        grid = model_grid.without_documents(self.rows)
        return {"grid": grid, "differences": differences, "shift": shift, "power": self.power}


def _captioned(name: str, table: pd.DataFrame) -> Styler:
    """A table as a notebook shows it, under its name."""
    return table.style.hide().set_caption(name.replace("_", " "))


def _check_precision(records: dict[str, dict]) -> None:
    """Raise ValueError unless one precision computed all records."""
    names = {record["provenance"]["dtype"]: name for name, record in records.items()}
    if len(names) > 1:
        examples = ", ".join(f"{dtype} ({name})" for dtype, name in sorted(names.items()))
        raise ValueError(
            f"the records are of several precisions, {examples}: delete those of one, and run the study again"
        )


def _domains(report: StudyReport) -> Topic:
    healed = score_figures.healed_points(report.rows)
    drawn = {"healed_share": score_figures.healed_shares(healed)} if healed else {}
    return Topic(tables={"domains": tables.domain_table(report.rows)}, figures=drawn, text=domain_sentence(report))


def domain_sentence(report: StudyReport) -> str:
    """Which tasks are of each data set's own domain, and why a healed share is missing."""
    tuned = [row for row in report.rows if "forgetting" in row]
    lines = [
        f"Own tasks of {name}: {', '.join(report.in_domain.get(name, [])) or 'none'}."
        for name in sorted({row["data_set"] for row in tuned})
    ]
    lacks = any(row[domain] is None for row in tuned for domain in score_figures.DOMAINS)
    why = 'Where the healed share is "-", there is no such task, or pruning lost nothing there that is clear of 0.'
    return "\n\n".join([*lines, why] if lacks else lines)


def _recovery(report: StudyReport) -> Topic:
    shown = {"recovery": tables.recovery_table(report.rows, report.original)}
    if averaged_tasks(report.original, measure=CHOICE):
        shown["recovery_of_choice_probability"] = tables.recovery_table(report.rows, report.original, measure=CHOICE)
    return Topic(tables=shown, figures={"recovery": score_figures.recovery_grid(report.rows)})


def _scores(report: StudyReport) -> Topic:
    n = model_grid.nearest_cut(report.records)
    shown = {
        "scores": tables.score_table(report.rows),
        "choice_probability": tables.choice_table(report.rows),
        "bits_per_byte": tables.bits_table(report.rows, report.in_domain),
    }
    drawn = {"scores": score_figures.study_scores(report.rows, block_size=n)}
    there = {name: table for name, table in shown.items() if len(table)}
    return Topic(tables=there, figures=drawn, text=averaged_sentence(report))


def averaged_sentence(report: StudyReport) -> str:
    """Which tasks the averages hold, and why others are left out; a paragraph per measure."""
    return "\n\n".join(_averaged(report.original, measure) for measure in HAS_CHANCE)


def _averaged(original: dict[str, dict], measure: str) -> str:
    averaged, name = averaged_tasks(original, measure=measure), measure.replace("_", " ")
    lines = [f"Averaged in {name}: {', '.join(averaged)}." if averaged else f"No task has a {name}."]
    for task, why in left_out(original, measure=measure).items():
        lines.append(f"- {'Doubtful' if task in averaged else 'Left out'}: {task}, as {why}.")
    return "\n".join(lines)


def _scaling(report: StudyReport) -> Topic:
    rows = model_grid.scaling(report.records)
    return Topic(
        tables={"scaling": tables.scaling_table(rows)}, figures={"scaling": score_figures.scaling_curves(rows)}
    )


def _training(report: StudyReport) -> Topic:
    budget = job_tables.study_budget_table(report.records)
    shown = {"training": job_tables.training_table(report.records), "budget": budget}
    return Topic(tables={name: table for name, table in shown.items() if name == "training" or len(table)})


def _similarity(report: StudyReport) -> Topic:
    metrics = of_step(report.records, "similarity")[0]["metrics"]
    angular_map, blocks = np.array(metrics["map"]), metrics["blocks"]
    curves = {block["block_size"]: np.diagonal(angular_map, offset=block["block_size"]) for block in blocks}
    return Topic(
        figures={
            "similarity_map": figures.similarity_heatmap(angular_map, blocks),
            "distance_curves": figures.distance_curves(curves, blocks),
            "block_influence": figures.block_influence(np.array(metrics["block_influence"])),
        }
    )


def _selection(report: StudyReport) -> Topic:
    points = layer_damage.damage(report.records, report.in_domain)
    if not points:
        return Topic(text="This study removes the paper's block alone (study key `selection`).")
    metrics = of_step(report.records, "similarity")[0]["metrics"]
    tasks = sorted({task for point in points for task in point["tasks"]})
    return Topic(
        tables={"layer_damage": selection_views.damage_table(points, metrics["choices"])},
        figures={
            "layer_damage": selection_views.damage_curves(points),
            "chosen_layers": selection_views.chosen_layers(metrics["choices"], metrics["layers"]),
        },
        text=f"Bits per byte of: {', '.join(tasks) or 'no task'}. These are of no domain that is fine-tuned on.",
    )


def _on_request(step: str, *, tables: dict[str, Callable], figure: Callable) -> Callable[[StudyReport], Topic]:
    """A step's own tables and figure, of its record's metrics; nothing where the study did not ask for it."""

    def topic(report: StudyReport) -> Topic:
        drawn = Topic()
        for record in of_step(report.records, step):
            drawn.tables |= {name: table(record["metrics"]) for name, table in tables.items()}
            drawn.figures[step] = figure(record["metrics"])
        return drawn

    return topic


def _embedding_similarity(report: StudyReport) -> Topic:
    greedy, sampled = (job_tables.pooled_similarities(report.records, how) for how in ("greedy", "sampled"))
    return Topic(
        tables={"embedding_similarity": job_tables.embedding_table(report.records)},
        figures={"embedding_similarity": figures.embedding_histogram(greedy, sampled)},
    )


def _answers(report: StudyReport) -> Topic:
    table = job_tables.answers_table(report.records)
    return Topic(tables={"answers": table}) if len(table) else Topic(text="The records of this study keep no answers.")


def _shift(report: StudyReport) -> Topic:
    points = answer_shift.shift_points(report.records)
    text = answer_shift.shift_sentence(answer_shift.shift_correlation(points))
    drawn = {"shift": figures.shift_scatter(points)}
    learnt = answer_shift.foreignness_points(report.records)
    return Topic(figures=drawn | ({"foreignness": figures.foreignness_lines(learnt)} if learnt else {}), text=text)


def _claims(report: StudyReport) -> Topic:
    answers = report.claims
    sentences = [f"**{answer['claim']}** *{answer['verdict'].capitalize()}.* {answer['why']}" for answer in answers]
    claim_tables = {"claims": tables.claims_table(answers), "headline_claims": tables.headline_claims_table(answers)}
    return Topic(tables=claim_tables, text="\n\n".join(sentences), show_tables=False)


def _power(report: StudyReport) -> Topic:
    primary = [entry for entry in report.power if entry["primary"]]
    drawn = {"power": power_views.power_curves(primary)} if primary else {}
    return Topic(tables={"power": power_views.power_table(report.power)}, figures=drawn)


def _table(name: str, make: Callable[[StudyReport], pd.DataFrame]) -> Callable[[StudyReport], Topic]:
    return lambda report: Topic(tables={name: make(report)})


TOPICS: dict[str, Callable[[StudyReport], Topic]] = {
    "provenance": _table("provenance", lambda report: job_tables.provenance_table(report.records)),
    "domains": _domains,
    "recovery": _recovery,
    "scores": _scores,
    "scaling": _scaling,
    "capacities": _table("capacities", lambda report: tables.capacity_table(model_grid.capacities(report.records))),
    "similarity": _similarity,
    "selection": _selection,
    "distillation": _table("distillation", lambda report: job_tables.distillation_table(report.records)),
    "training": _training,
    "merging": _table("merging", lambda report: tables.merging_table(report.records)),
    "embedding_similarity": _embedding_similarity,
    "answers": _answers,
    "shift": _shift,
    "speculative_decoding": _on_request(
        "speculative_decoding",
        tables={
            "speculative_decoding": speculation_views.acceptance_table,
            "drafted_decoding": speculation_views.decoding_table,
        },
        figure=speculation_views.speculation_figure,
    ),
    "quantization": _on_request(
        "quantization",
        tables={"quantization": quantization_views.quantization_table},
        figure=quantization_views.quantization_figure,
    ),
    "fidelity": _table("fidelity", lambda report: tables.fidelity_table(report.records)),
    "paper_vs_ours": _table("paper_vs_ours", lambda report: paper_table.comparison_table(report.records, report.rows)),
    "claims": _claims,
    "power": _power,
}
