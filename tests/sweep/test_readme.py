"""README and docs: short enough; every command, link, study and file they name exists; tables are the committed."""

import re
import subprocess

import pytest

from sdd_utils import ROOT
from sdd_utils.study.schema import load_study
from sdd_utils.sweep import readme

PAGES = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))}
README = PAGES["README.md"]
EMBEDDED = ("claims", "domains", "recovery", "recovery_of_choice_probability", "scores", "choice_probability")
_PILOT = ("recovery_of_choice_probability", "bits_per_byte", "power")
EMBEDDED += ("bits_per_byte", "fidelity", "paper_vs_ours")
TABLES = {
    "README.md": {"results/embedded/tables/headline_claims"},
    "results.md": {f"results/embedded/tables/{name}" for name in EMBEDDED},
    "studies.md": {
        *(f"results/selection/tables/{name}" for name in ("headline_claims", "layer_damage")),
        *(f"results/healing/tables/{name}" for name in ("claims", "bits_per_byte", "budget")),
        *(f"results/deployment/tables/{name}" for name in ("speculative_decoding", "drafted_decoding", "quantization")),
        "benchmarks/distillation_steps",
    },
    "performance.md": {
        f"benchmarks/{name}" for name in ("results", "ablation", "breakdown", "evaluation_cost", "scaling")
    },
    "laptop-design.md": {f"results/laptop-pilot/tables/{name}" for name in _PILOT},
    "own-model.md": {
        *(f"benchmarks/{name}" for name in ("rewrite_wordings", "text_start", "compressed", "serving")),
        *(f"benchmarks/compressed/{name}/answers" for name in ("smollm2", "gemma3", "qwen")),
        "results/models",
    },
}


def test_the_readme_is_one_that_a_newcomer_finishes():
    assert len(README.splitlines()) <= 90
    assert len(README.encode()) <= 7 * 1024


def test_the_example_study_loads_as_it_stands(tmp_path):
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGES["own-model.md"], flags=re.DOTALL)
    assert len(example.splitlines()) == 5
    (tmp_path / "mine.yaml").write_text(example)
    loaded = load_study(str(tmp_path / "mine.yaml"))
    assert loaded.own_data["mine"]["context"] == "passage"
    assert loaded.lora_rank == load_study("laptop").lora_rank


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_and_studies_of_a_page_exist(page):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"`(?:\S+=\S+ )*make ([a-z]+)", PAGES[page])) <= targets
    for name in re.findall(r"STUDY=([\w./-]+)", PAGES[page]):
        if not name.endswith(".yaml") and "…" not in name:
            load_study(name)


def test_the_architecture_page_lists_every_module_and_no_other():
    page = PAGES["architecture.md"]
    rooms = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##)", page, flags=re.MULTILINE | re.DOTALL))
    listed = {room: {name for row in text.splitlines() for name in re.findall(r"`(\w+)`", row.partition(" | ")[0])}
              for room, text in rooms.items()}  # fmt: skip
    modules = {
        folder.parent.name: {path.stem for path in folder.parent.glob("*.py")} - {"__init__"}
        for folder in (ROOT / "sdd_utils").glob("*/__init__.py")
    }
    assert listed == modules


def test_the_readme_names_the_commands_that_most_readers_need():
    assert {"reproduce", "test", "figures"} <= set(re.findall(r"make ([a-z]+)", README))


@pytest.mark.parametrize("page", PAGES)
def test_links_and_files_that_a_page_names_exist(page):
    folder = (ROOT if page == "README.md" else ROOT / "docs").resolve()
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]) if "://" not in link]
    assert [link for link in links if link and not (folder / link).exists()] == []
    named = re.findall(r"`((?:sdd_utils|notebooks|tests|benchmarks)/[\w./-]+\.\w+)`", PAGES[page])
    assert [name for name in named if not (ROOT / name).exists()] == []
    modules = re.findall(r"-m (sdd_utils(?:\.\w+)+)", PAGES[page])
    assert [name for name in modules if not (ROOT.joinpath(*name.split("."))).with_suffix(".py").exists()] == []


def test_estimates_are_what_the_code_makes_now():
    estimates = r"<!-- plan: (\S+) -->(.*?)<!-- end -->"
    found = dict(re.findall(estimates, README))
    assert len(found) == 4
    assert {name: readme.plan_in_brief(name) for name in found} == found, "run 'make readme'"


def test_detectable_differences_of_a_design_are_what_its_pilot_says_now():
    (place,) = re.findall(r"<!-- power: (\S+) -->(.*?)<!-- end -->", PAGES["laptop-design.md"], flags=re.S)
    assert readme.power(place[0]) == place[1], "run 'make readme'"
    assert "variances of results/laptop-pilot, of seeds those of results/qwen2.5-coder-0.5b" in place[1]


def committed(path):
    """A file as git has it: `make reproduce` rewrites the tables of a working copy, and its numbers are the user's."""
    return subprocess.run(["git", "show", f":{path}"], cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("page", PAGES)
def test_pages_show_the_committed_tables(page):
    text = committed(page if page == "README.md" else f"docs/{page}")
    tables = re.findall(r"<!-- table: (\S+) -->", text)
    assert set(tables) == TABLES.get(page, set())
    for table in tables:
        assert f"<!-- table: {table} -->\n{committed(f'{table}.md')}<!-- end -->" in text, table


def test_marked_places_are_filled(tmp_path):
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "recovery.md").write_text("| new |\n")
    page = "a\n<!-- table: tables/recovery -->\n| old |\n<!-- end -->\n| x | <!-- plan: embedded -->old<!-- end --> |\n"
    filled = readme.fill_page(page, root=tmp_path)
    cost = readme.plan_in_brief("embedded")
    table = "<!-- table: tables/recovery -->\n| new |\n<!-- end -->"
    assert filled == f"a\n{table}\n| x | <!-- plan: embedded -->{cost}<!-- end --> |\n"
    assert re.fullmatch(r"[\d.]+ h \(cpu-2-cores\), [\d.]+ GB", cost)
