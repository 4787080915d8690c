"""A series of tries on one study: disturbed in the order of its steps, gone on with each time, compared at the end."""

import random
import subprocess
from collections.abc import Callable, Iterator

from sdd_utils.base.files import keep_rows
from tests.faults import place as places
from tests.faults.place import Place

Disturb = Callable[[subprocess.Popen, Place, random.Random], bool]


def series(place: Place, undisturbed: Place, *, part: str, tries: int, disturb: Disturb) -> dict[str, int]:
    """Disturb a study so many times, spread over its steps, then run it to its end. An interrupted series goes on.

    Args:
        disturb: does it to the command that runs; whether all went as it should.

    Returns:
        {tried, survived, rows_lost}: a try is survived if all went well and the records of the jobs that it hit are
        those of the undisturbed run.
    """
    seconds = places.seconds(undisturbed)
    numbers = sorted(seconds)  # of the steps that the study has

    def make(ids: list[str]) -> Iterator[dict]:
        newest = {}
        for id_ in ids:
            number = numbers[int(id_.rpartition(" ")[2]) * len(numbers) // tries]
            yield {"id": id_} | _one(place, number, random.Random(id_), seconds[number], newest, disturb)

    keys = dict.fromkeys((f"{part} {count}" for count in range(tries)), places.code_digest())
    made = keep_rows(place.copy.with_name(f"{part}.jsonl"), keys, make=make)
    newest, lost = {}, [row["lost"] for row in made]
    status = places.finish(place, tick=lambda: lost.append(places.steps_lost(place, newest)))
    wrong, there = places.differing(place, undisturbed), places.finished(place)
    before = {name: rows for row in made for name, rows in row["finished"].items()}
    lost += [places.made_twice(place), *(rows for name, rows in before.items() if name not in there)]
    print(f"{part}: status {status} at the end; records that differ: {', '.join(sorted(wrong)) or 'none'}", flush=True)
    survived = [row for row in made if row["well"] and status == 0 and not wrong.intersection(row["hit"])]
    return {"tried": len(made), "survived": len(survived), "rows_lost": sum(lost)}


def _one(place: Place, number: str, draw: random.Random, seconds: float, newest: dict, disturb: Disturb) -> dict:
    """Start the study, disturb it when a job of this step has run for a while, and say what came of it."""
    lost, reached = [], False
    while not reached:
        process = places.start(place)
        tick = lambda: lost.append(places.steps_lost(place, newest))  # noqa: E731
        reached = places.reach(process, place, number, delay=draw.uniform(0, seconds), tick=tick)
        if not reached and process.returncode:  # it did not survive the try before
            return {"hit": [], "well": False, "finished": {}, "lost": sum(lost)}
        if not reached:  # all was done before: the step is made again
            for path in (place.run / "records").glob(f"{places.STEPS[number]}*.json"):
                path.unlink()
    hit = [name for _, name in places.running(place)]
    well = disturb(process, place, draw)
    print(f"step {number}: hit {', '.join(hit) or 'no job'}; {'well' if well else 'NOT WELL: see the log'}", flush=True)
    return {"hit": hit, "well": well, "finished": places.finished(place), "lost": sum(lost)}
