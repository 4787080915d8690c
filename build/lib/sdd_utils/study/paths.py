"""Where the files of a run lie."""

from dataclasses import dataclass
from pathlib import Path

from sdd_utils import ROOT


def committed_results(study: str) -> Path:
    """The folder of a study's committed results, whether there are any or not.

    Args:
        study: its name.
    """
    return ROOT / "results" / study


def shown(path: Path) -> str:
    """A path as messages name it: relative to the repository where it lies there."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def job_name(
    step: str = "",
    *,
    block_size: int | None = None,
    data_set: str | None = None,
    rows: int | None = None,
    capacity: str = "",
    seed: int | None = None,
) -> str:
    """A short name for a job: its step and what it is run on, e.g. `finetuning-n4-gsm_symbolic-48rows-s0`."""
    counted = rows is not None and (f"{rows}rows" if rows else "allrows")
    size, by_seed = block_size is not None and f"n{block_size}", seed is not None and f"s{seed}"
    parts = [step, size, data_set, counted, capacity, by_seed]
    return "-".join(part for part in parts if part)


@dataclass(frozen=True)
class Run:
    """The folder of a run and the names of all that lies in it. Names are for people: what made a file is inside it."""

    folder: Path

    @classmethod
    def at(cls, folder: str) -> "Run":
        """The run in a folder; a relative path starts at the repository."""
        return cls(ROOT / folder)

    @property
    def records(self) -> Path:
        return self.folder / "records"

    @property
    def notebooks(self) -> Path:
        """The executed ones, each under the name of its record."""
        return self.folder / "notebooks"

    @property
    def figures(self) -> Path:
        return self.folder / "figures"

    @property
    def tables(self) -> Path:
        return self.folder / "tables"

    def record(self, step: str, **job) -> Path:
        """The record of a job; see `job_name`."""
        return self.records / f"{job_name(step, **job)}.json"

    def checkpoint(self, block_size: int) -> Path:
        """The pruned model; block size 0 is the original."""
        return self.folder / "checkpoints" / f"n{block_size}"

    def selection(self, name: str) -> Path:
        """A model without the layers that another strategy than the paper's chose, while it is scored."""
        return self.folder / "selections" / name

    def generated(self, name: str) -> Path:
        """Raw generated texts, or likelihoods: files that only ever grow."""
        return self.folder / "generated" / f"{name}.jsonl"

    def scores(self, name: str) -> Path:
        """A model's scores, a task per line: a file that only ever grows."""
        return self.folder / "scores" / f"{name}.jsonl"

    def training_set(self, data_set: str, which: str) -> Path:
        """A set that the unpruned model wrote, judged: `pydoc.jsonl`, or `pydoc-self_generated.jsonl` where it did not
        see the responses."""
        return self.folder / "distilled" / f"{data_set if which == 'distilled' else f'{data_set}-{which}'}.jsonl"

    def teacher(self, data_set: str) -> Path:
        """The folder of the unpruned model's distributions at the tokens of a data set's responses."""
        return self.folder / "teacher" / data_set

    def answers(self, data_set: str) -> Path:
        """The original's answers to a data set's held-out questions."""
        return self.folder / "answers" / f"{data_set}.jsonl"

    def adapter(self, arm: str, **job) -> Path:
        """The LoRA adapter of one arm of a fine-tuning."""
        return self.folder / "adapters" / f"{job_name(**job)}-{arm}"

    def quantized(self, name: str) -> Path:
        """A model in one of the formats of 08, while that runs."""
        return self.folder / "quantized" / name

    def merges(self, **job) -> Path:
        """Parents and merges while a merging runs."""
        return self.folder / "merges" / job_name(**job)


def saved_jobs(study: str) -> Run:
    """Where git keeps what is finished of a study that still runs, see `sweep.take_over`; laid out like a run."""
    return Run(committed_results(study) / "saved")
