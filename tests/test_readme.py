"""The README's study is one that loads, and its make targets exist."""

import re

from sdd_utils import readme, study

README = (study.ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_study_loads_as_it_stands(tmp_path):
    (example,) = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
    assert len(example.splitlines()) == 5
    (tmp_path / "mine.yaml").write_text(example)
    loaded = study.load(str(tmp_path / "mine.yaml"))
    assert loaded.own_data["mine"]["context"] == "passage"
    assert loaded.lora_rank == study.load("laptop").lora_rank


def test_make_targets_of_the_readme_exist():
    targets = set(re.findall(r"^([a-z]+):", (study.ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert (
        {"reproduce", "test", "plan", "prefetch", "lab"} <= set(re.findall(r"make ([a-z]+)", README)) <= targets | {"s"}
    )


def test_studies_of_the_readme_exist():
    for name in re.findall(r"STUDY=([\w./-]+)", README):
        if not name.endswith(".yaml"):
            study.load(name)


def test_estimates_are_what_the_code_makes_now():
    estimates = r"<!-- plan: (\S+) -->(.*?)<!-- end -->"
    found = dict(re.findall(estimates, README))
    assert len(found) == 4
    assert {name: readme.brief(name) for name in found} == found, "run 'make readme'"


def test_marked_places_are_filled(tmp_path):
    (tmp_path / "recovery.md").write_text("| new |\n")
    page = "a\n<!-- table: recovery -->\n| old |\n<!-- end -->\n| x | <!-- plan: embedded -->old<!-- end --> |\n"
    filled = readme.fill(page, tables=tmp_path)
    cost = readme.brief("embedded")
    assert filled == (
        f"a\n<!-- table: recovery -->\n| new |\n<!-- end -->\n| x | <!-- plan: embedded -->{cost}<!-- end --> |\n"
    )
    assert re.fullmatch(r"[\d.]+ h \(cpu-2-cores\), [\d.]+ GB", cost)
