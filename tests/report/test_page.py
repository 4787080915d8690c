"""A study's page stands on its own, and every link and every number on it leads to a file beside it."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest

from sdd_utils import ROOT
from sdd_utils.analysis import verdicts
from sdd_utils.base.files import write_json
from sdd_utils.base.records import records_by_file
from sdd_utils.report import page

STUDY = ROOT / "results" / "embedded"


class Found(HTMLParser):
    """Links, sources and open elements of a page."""

    def __init__(self):
        super().__init__()
        self.links, self.sources, self.tags = [], [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.links += [attrs["href"]] if tag == "a" else []
        self.sources += [attrs["src"]] if "src" in attrs else []


@pytest.fixture
def folder(tmp_path):
    """The embedded study as it is kept, with claims made from its records."""
    kept = tmp_path / "embedded"
    shutil.copytree(STUDY, kept, ignore=shutil.ignore_patterns("index.html", "claims.json", "*.ipynb"))
    records = records_by_file(kept / "records")
    write_json(kept / "claims.json", verdicts.judge_claims(records, in_domain={}))
    return kept


def read(folder):
    html, found = page.build_page(folder).read_text(encoding="utf-8"), Found()
    found.feed(html)
    return html, found


def test_the_page_needs_no_other_file_and_its_links_lead_somewhere(folder):
    html, found = read(folder)
    assert all(source.startswith("data:image/png;base64,") for source in found.sources)
    assert not {"script", "link", "iframe"} & set(found.tags)
    assert "@import" not in html
    assert "url(" not in html
    local = [link for link in found.links if not link.startswith("https://arxiv.org/")]
    assert [link for link in local if not (folder / link).exists()] == []
    assert {f"records/{path.name}" for path in (folder / "records").glob("*")} <= set(local)


def test_every_number_of_the_records_is_shown_beside_its_record(folder):
    html, _ = read(folder)
    summary = json.loads((folder / "records" / "results.json").read_text())["metrics"]
    for row in summary["grid"]:
        if row["arm"] not in ("sft", "self_data_ft"):
            continue
        shown = (
            f"{100 * row['recovery']:z.1f} % <small>[{100 * row['interval'][0]:z.1f}, {100 * row['interval'][1]:z.1f}]"
        )
        (link,) = set(re.findall(rf'href="records/([^"]+)">{re.escape(shown)}', html))
        params = json.loads((folder / "records" / link).read_text())["params"]
        assert (params["block_size"], params["data_set"]) == (row["block_size"], row["data_set"])


def test_fewer_rows_and_other_capacities_are_not_cited_for_the_headline():
    def tuned(**params):
        return {"step": "finetuning", "params": {"block_size": 4, "data_set": "d", "train_rows": 48} | params}

    records = {"all": tuned(train_rows=0), "few": tuned(train_rows=12), "wide": tuned(train_rows=0, capacity="r64")}
    assert page._main_files(records, block_size=4, data_set="d") == ["all"]
    assert page._main_files({"more": tuned(), "few": records["few"]}, block_size=4, data_set="d") == ["more"]
    assert page._main_files(records, block_size=6, data_set="d") == []


def test_every_claim_has_its_card_and_text_is_escaped(folder):
    answers = json.loads((folder / "claims.json").read_text())
    answers[0] |= {"verdict": "holds", "why": "<script>alert(1)</script>"}
    answers[1] |= {"verdict": "does not hold"}
    write_json(folder / "claims.json", answers)
    html, found = read(folder)
    assert found.tags.count("article") == len(answers)
    assert ("✓ holds" in html, "✗ does not hold" in html) == (True, True)
    assert "script" not in found.tags


@pytest.mark.parametrize("lost", ["claims.json", "records/results.json"])
def test_a_study_that_has_not_run_is_told(folder, lost):
    (folder / lost).unlink()
    with pytest.raises(FileNotFoundError, match=rf"embedded/{lost} does not exist yet: run 'make reproduce'"):
        page.build_page(folder)


def test_marks_lie_in_their_order_on_the_line():
    claim = {"verdict": "holds", "interval": [0.01, 0.05], "estimate": 0.03, "unit": "points", "detectable": 0.02}
    line = page._drawn(claim | {"parts": [{"size": 0.095, "side": 1}]})["line"]
    assert [line["zero"], line["size"]] == [4, 96]
    assert line["zero"] < line["low"] < line["estimate"] < line["high"] < line["size"]
