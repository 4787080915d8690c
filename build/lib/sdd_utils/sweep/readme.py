"""Fill README and docs with tables and estimates that the code made: `make readme`.

`<!-- table: results/embedded/tables/recovery -->…<!-- end -->` holds that Markdown file of the repository,
`<!-- plan: study -->…` what a study costs, `<!-- power: study/pilot/other -->…` what it can detect by the variances of
its pilot's results, and of the seeds of another study. What several studies say together, `results/models.md` among it,
is made first.
"""

import re
from pathlib import Path

from sdd_utils import ROOT
from sdd_utils.report.across_studies import write_across_studies
from sdd_utils.study.schema import load_study
from sdd_utils.sweep import expected_power, plan


def fill_page(page: str, *, root: Path = ROOT) -> str:
    """The page with every marked place filled anew.

    Args:
        root: the folder that names of tables are relative to.
    """

    def filled(match: re.Match) -> str:
        kinds = {"table": lambda name: f"\n{(root / f'{name}.md').read_text()}", "plan": plan_in_brief, "power": power}
        return f"{match['start']}{kinds[match['kind']](match['name'])}<!-- end -->"

    places = r"(?P<start><!-- (?P<kind>table|plan|power): (?P<name>\S+) -->).*?<!-- end -->"
    return re.sub(places, filled, page, flags=re.S)


def power(name: str) -> str:
    """What a study can detect, by names "study/pilot/other": its pilot's results, and the seeds of another study."""
    study, pilot, other = name.split("/")
    return f"\n{expected_power.report(load_study(study), name=pilot, seeds_of=other, style='pipe')}\n"


def plan_in_brief(name: str) -> str:
    """Time and disk of a whole study in a few words."""
    costs, _ = plan.cost_model(load_study(name), hardware=None)
    whole = [row.whole for row in plan.plan_rows(costs, []).values()]
    hours = sum(cost.seconds for cost in whole) / plan.HOUR / costs.machine.jobs_at_once
    model_folder = 2 * costs.shapes[0].parameters  # 2 bytes a parameter
    disk = sum(cost.disk for cost in whole) + model_folder
    return f"{plan.short(hours)} h ({costs.machine.name}), {plan.short(disk / plan.GB)} GB"


if __name__ == "__main__":
    write_across_studies()
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        path.write_text(fill_page(path.read_text(encoding="utf-8")), "utf-8")
