"""Two commands at once: the second one of a study is told to wait, and two studies do not harm one another."""

import random
import shutil
import time

from tests.faults import place as places
from tests.faults.place import Place

TOLD = "error: another run is going on in work/study: wait for it to end"


def two_at_once(tries: int) -> dict:
    """A study's own command again, at random moments; then two studies side by side, and two that convert a model."""
    undisturbed = places.reference(places.TINY)
    folder = undisturbed.copy.with_name("two_at_once")
    shutil.rmtree(folder, ignore_errors=True)  # a try lasts as long as the study: an interrupted part begins anew
    place = places.make(folder, places.TINY)
    draw, seconds = random.Random(0), sum(places.seconds(undisturbed).values()) / 2
    moments = sorted([0.0, *(draw.uniform(0, seconds) for _ in range(tries - 3))])
    survived = _rivals(place, undisturbed, moments) + _neighbours(place, undisturbed) + _converters(place)
    return {"tried": tries, "survived": survived, "rows_lost": places.made_twice(place)}


def _rivals(place: Place, undisturbed: Place, moments: list[float]) -> int:
    """How many of the second commands were told to wait, in one sentence, while the other went on unharmed."""
    holder, rival = place, place._replace(log=place.log.with_suffix(".rival.log"))
    running, started, told = places.start(holder), time.time(), 0
    for moment in moments:
        time.sleep(max(0, started + moment - time.time()))
        second = places.start(rival)
        while running.poll() is None and second.poll() is None:
            time.sleep(0.1)
        if second.poll() is None:  # of two that start at the same moment, either may be the first to hold the run
            holder, rival, running, second = rival, holder, second, running
        told += second.wait() == 2 and places.said(rival).strip().splitlines()[1:] == [TOLD]
    right = running.wait() == 0 and not places.differing(place, undisturbed)
    return told if right else 0


def _neighbours(place: Place, undisturbed: Place) -> bool:
    """Whether two studies of one repository, of the same values, both come out as the undisturbed one."""
    ended = []
    for name in ("one", "two"):
        shutil.copy(place.copy / places.STUDY, place.copy / f"{name}.yaml")
        where = ("--run", f"work/{name}")
        own = place._replace(log=place.log.with_suffix(f".{name}.log"))
        ended.append(places.start(own, arguments=(f"{name}.yaml", *where)))
    well = [process.wait() == 0 for process in ended]
    wanted = {name: record["metrics"] for name, record in places.records(undisturbed).items()}
    made = [{n: r["metrics"] for n, r in places.records(place, run=f"work/{name}").items()} for name in ("one", "two")]
    return all(well) and made == [wanted, wanted]


def _converters(place: Place) -> bool:
    """Whether two processes that find no model yet convert it once, and both have it."""
    (place.copy / "work" / "models").unlink()
    logs = [place._replace(log=place.log.with_suffix(f".converter{i}.log")) for i in range(2)]
    both = [places.start(log, module="models.store", arguments=("smollm2-135m-instruct",)) for log in logs]
    return [process.wait() for process in both] == [0, 0] and (
        [path.name for path in (place.copy / "work" / "models").glob("*/manifest.json")] == ["manifest.json"]
    )
