"""A study's page stands on its own, and every link and every number on it leads to a file beside it."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser

import pytest

from sdd_utils import ROOT
from sdd_utils.analysis import claims
from sdd_utils.base.records import read_record, records_by_file
from sdd_utils.report import figures, notebook_pages, page, redraw, score_figures
from sdd_utils.report.topics import StudyReport

STUDY = ROOT / "results" / "embedded"
save = figures.save


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
    """The embedded study as it is kept, without what is drawn from its records."""
    drawn = shutil.ignore_patterns("index.html", "claims.json", "figures", "tables")
    return shutil.copytree(STUDY, tmp_path / "embedded", ignore=drawn)


def build(folder, **changes):
    """The page, as text and as what its HTML holds; `changes` go into the first claims."""
    summary = read_record(folder / "records" / "results.json")
    report = StudyReport(records_by_file(folder / "records"), in_domain=summary["params"]["in_domain"], folder=folder)
    figures.save(score_figures.recovery_grid(report.rows), folder / "figures", "recovery")
    healed = score_figures.healed_points(report.rows)
    figures.save(score_figures.healed_shares(healed), folder / "figures", "healed_share")
    for claim, values in zip(report.claims, changes.values(), strict=False):
        claim |= values
    html, tags = page.build_page(report, summary).read_text(encoding="utf-8"), Found()
    tags.feed(html)
    return html, tags


def test_the_page_needs_no_other_file_and_links_every_record(folder):
    html, found = build(folder)
    assert all(source.startswith("data:image/png;base64,") for source in found.sources)
    assert not {"script", "link", "iframe"} & set(found.tags)
    assert "@import" not in html
    assert "url(" not in html
    local = [link for link in found.links if not link.startswith("https://arxiv.org/")]
    assert {f"records/{path.name}" for path in (folder / "records").glob("*")} <= set(local)


def test_every_number_of_the_records_is_shown_beside_its_record(folder):
    def cell_of(file):
        params = json.loads((folder / "records" / file).read_text())["params"]
        return params["block_size"], params["data_set"]

    html, _ = build(folder)
    summary = json.loads((folder / "records" / "results.json").read_text())["metrics"]
    for row in summary["grid"]:
        if row["arm"] not in ("sft", "self_data_ft"):
            continue
        shown = (
            f"{100 * row['recovery']:z.1f} % <small>[{100 * row['interval'][0]:z.1f}, {100 * row['interval'][1]:z.1f}]"
        )
        cells = re.findall(rf"<td(?:(?!</td>).)*?{re.escape(shown)}.*?</td>", html, flags=re.S)
        linked = [re.findall(r'href="records/([^"]+)"', cell) for cell in cells]
        wanted = (row["block_size"], row["data_set"])
        assert any(len(files) == row["seeds"] and {*map(cell_of, files)} == {wanted} for files in linked)


def test_the_page_says_what_the_study_can_see(folder):
    html, _ = build(folder)
    entries = json.loads((folder / "records" / "results.json").read_text())["metrics"]["power"]
    (section,) = re.findall(r"<h2>What this study can see</h2>.*?</table>", html, re.DOTALL)
    shown = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in section.split("<tr>")[2:]]
    assert [(row[1], int(row[2]), int(row[3])) for row in shown] == [
        (entry["unit"], entry["seeds"], entry["documents"]) for entry in entries
    ]


def test_every_claim_has_its_card_and_text_is_escaped(folder):
    first = {"verdict": "holds", "why": "<script>alert(1)</script>"}
    html, found = build(folder, first=first, second={"verdict": "does not hold"})
    asked = json.loads((STUDY / "claims.json").read_text())
    assert len(asked) > len(claims.claims({}))  # task vectors are asked about where they were merged
    assert found.tags.count("article") == len(asked)
    assert ("✓ holds" in html, "✗ does not hold" in html) == (True, True)
    assert "script" not in found.tags


def test_the_healed_share_comes_first_and_measures_say_whom_they_favour(folder):
    html, _ = build(folder)
    drawn = base64.b64encode((folder / "figures" / "healed_share.png").read_bytes()).decode()
    assert html.index(drawn) < html.index("<h2>Recovery</h2>")
    assert html.count("Favours Self-Data FT by construction.") == 2  # KL, and the cosine of answers
    assert html.count('<td data-name="favours">Self-Data FT</td>') == 2  # the paper's two cosines


def test_a_page_without_a_healed_share_begins_with_recovery(folder, monkeypatch):
    monkeypatch.setattr(figures, "save", lambda drawn, place, name: name != "healed_share" and save(drawn, place, name))
    html, _ = build(folder)
    assert "<h2>Healed share</h2>" not in html
    assert "<h2>Recovery</h2>" in html


def test_a_study_that_has_not_run_is_told(folder):
    summary = read_record(folder / "records" / "results.json")
    report = StudyReport(records_by_file(folder / "records"), in_domain={}, folder=folder)
    with pytest.raises(FileNotFoundError, match="embedded/figures/recovery.png does not exist yet: run 'make repro"):
        page.build_page(report, summary)


def test_redrawing_gives_the_committed_tables_and_every_link_leads_somewhere(folder):
    """`make figures`: from the records alone, what a run published."""
    redraw.redraw(folder)
    for path in sorted((STUDY / "tables").iterdir()):
        assert (folder / "tables" / path.name).read_text() == path.read_text(), f"{path.name}: run 'make figures'"
    committed, drawn = (sorted(path.name for path in (place / "figures").iterdir()) for place in (STUDY, folder))
    assert drawn == committed, "run 'make figures' and commit what it draws"
    tags = Found()
    tags.feed((folder / "index.html").read_text(encoding="utf-8"))
    local = [link for link in tags.links if not link.startswith("https://arxiv.org/")]
    assert [link for link in local if not (folder / link).exists()] == []


def test_records_of_two_precisions_are_not_compared(folder):
    path = folder / "records" / "pruning-n0.json"
    path.write_text(path.read_text().replace('"dtype": "bfloat16"', '"dtype": "float32"'))
    with pytest.raises(ValueError, match=r"several precisions, bfloat16 \(.*\), float32 \(pruning-n0.json\): delete"):
        redraw.redraw(folder)


def test_pages_of_notebooks_need_no_network(folder, tmp_path):
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    shutil.copy(folder / "notebooks" / "similarity.ipynb", notebooks)
    notebook_pages.write_pages(notebooks, tmp_path / "html")
    html = (tmp_path / "html" / "similarity.html").read_text(encoding="utf-8")
    assert "data:image/png;base64," in html
    assert re.findall(r"<(?:script|link)[^>]+(?:src|href)=\"(?:https?:)?//[^>]*", html) == []


def test_marks_lie_in_their_order_on_the_line():
    claim = {"verdict": "holds", "interval": [0.01, 0.05], "estimate": 0.03, "unit": "points", "detectable": 0.02}
    line = page._drawn(claim | {"parts": [{"size": 0.095, "side": 1}]})["line"]
    assert [line["zero"], line["size"]] == [4, 96]
    assert line["zero"] < line["low"] < line["estimate"] < line["high"] < line["size"]
