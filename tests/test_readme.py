"""The README's study is one that loads, and its make targets exist."""

import re

from sdd_utils import study

README = (study.ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_study_loads_as_it_stands(tmp_path):
    (example,) = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
    assert len(example.splitlines()) == 6
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
