"""The README's study is one that loads, and its make targets exist."""

import re
import subprocess

from sdd_utils import ROOT
from sdd_utils.study.schema import load_study
from sdd_utils.sweep import readme

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_study_loads_as_it_stands(tmp_path):
    (example,) = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
    assert len(example.splitlines()) == 5
    (tmp_path / "mine.yaml").write_text(example)
    loaded = load_study(str(tmp_path / "mine.yaml"))
    assert loaded.own_data["mine"]["context"] == "passage"
    assert loaded.lora_rank == load_study("laptop").lora_rank


def test_make_targets_of_the_readme_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert (
        {"reproduce", "test", "plan", "prefetch", "lab"} <= set(re.findall(r"make ([a-z]+)", README)) <= targets | {"s"}
    )


def test_studies_of_the_readme_exist():
    for name in re.findall(r"STUDY=([\w./-]+)", README):
        if not name.endswith(".yaml"):
            load_study(name)


def test_estimates_are_what_the_code_makes_now():
    estimates = r"<!-- plan: (\S+) -->(.*?)<!-- end -->"
    found = dict(re.findall(estimates, README))
    assert len(found) == 4
    assert {name: readme.plan_in_brief(name) for name in found} == found, "run 'make readme'"


def committed(path):
    """A file as git has it: `make reproduce` rewrites the tables of a working copy, and its numbers are the user's."""
    return subprocess.run(["git", "show", f":{path}"], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_pages_show_the_committed_tables():
    found = set()
    for page in map(committed, ("README.md", "docs/performance.md")):
        for table in re.findall(r"<!-- table: (\S+) -->", page):
            assert f"<!-- table: {table} -->\n{committed(f'{table}.md')}<!-- end -->" in page, table
            found.add(table)
    shown = {
        "embedded": ("recovery", "scores"),
        "laptop": ("claims", "recovery", "paper_vs_ours", "scores", "fidelity"),
    }
    assert found == {f"results/{name}/tables/{table}" for name, own in shown.items() for table in own} | {
        "benchmarks/results",
        "benchmarks/scaling",
    }


def test_marked_places_are_filled(tmp_path):
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "recovery.md").write_text("| new |\n")
    page = "a\n<!-- table: tables/recovery -->\n| old |\n<!-- end -->\n| x | <!-- plan: embedded -->old<!-- end --> |\n"
    filled = readme.fill_page(page, root=tmp_path)
    cost = readme.plan_in_brief("embedded")
    table = "<!-- table: tables/recovery -->\n| new |\n<!-- end -->"
    assert filled == f"a\n{table}\n| x | <!-- plan: embedded -->{cost}<!-- end --> |\n"
    assert re.fullmatch(r"[\d.]+ h \(cpu-2-cores\), [\d.]+ GB", cost)
