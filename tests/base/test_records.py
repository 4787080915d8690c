"""Records are whole or absent, follow their schema and never hold NaN."""

import json

import pytest

from sdd_utils.base import records
from sdd_utils.base.records import SCHEMA, check_model, device_of, read_record, write_record
from sdd_utils.study.paths import Run

PARAMS = {"study": "tiny", "run": "r", "seed": 4, "block_sizes": [2]}
METRICS = {
    "weights": "abc",
    "blocks": [{"block_size": 2, "start": 1, "distance": 0.25, "stability": 1.0}],
    "layers": 3,
    "calibration_fingerprint": "f",
    "map": [[0.0, 2.0], [3, 4]],
    "block_influence": [0.5, 1],
}


@pytest.fixture
def path(tmp_path):
    return write_record(tmp_path / "similarity.json", step="similarity", params=PARAMS, metrics=METRICS)


def test_record_says_how_it_was_made(path):
    record = read_record(path)
    assert (record["params"], record["metrics"], record["schema"]) == (PARAMS, METRICS, SCHEMA)
    made = record["provenance"]
    assert made["seed"] == 4
    assert {"commit", "dirty", "versions", "device", "threads", "started", "wall_s", "peak_rss_mb"} <= set(made)
    assert made["dtype"] == "float32"
    assert device_of(made) == f"{made['device']} in float32"
    assert made["versions"]["torch"].startswith("2.13")
    assert made["peak_rss_mb"] > 50


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_is_refused_and_nothing_is_written(tmp_path, bad):
    with pytest.raises(ValueError, match="would hold NaN or infinity"):
        write_record(
            tmp_path / "similarity.json", step="similarity", params=PARAMS, metrics=METRICS | {"block_influence": [bad]}
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layers": "3"}, "layers: Input should be a valid integer"),
        ({"blocks": [{"start": 1}]}, r"blocks.0.block_size: Field required"),
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
    ],
)
def test_metrics_of_another_shape_are_refused_and_nothing_is_written(tmp_path, change, said):
    with pytest.raises(ValueError, match=rf"similarity.json is not a record of step 'similarity': {said}"):
        write_record(tmp_path / "similarity.json", step="similarity", params=PARAMS, metrics=METRICS | change)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_step_is_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown step 'prunning'"):
        write_record(tmp_path / "a.json", step="prunning", params=PARAMS, metrics={})


@pytest.mark.parametrize(("version", "shown"), [(None, 1), (SCHEMA + 1, SCHEMA + 1)])
def test_a_record_of_another_schema_gets_one_sentence(path, version, shown):
    record = json.loads(path.read_text()) | {"schema": version}
    path.write_text(json.dumps({key: value for key, value in record.items() if value is not None}))
    with pytest.raises(ValueError, match=rf"^similarity.json has record schema {shown}, this version reads {SCHEMA}: "):
        read_record(path)


def test_a_record_that_was_changed_by_hand_is_refused(path):
    record = json.loads(path.read_text())
    del record["metrics"]["layers"]
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"does not follow record schema \d+ \(layers: Field required\): delete it"):
        read_record(path)


def test_a_record_under_the_name_of_another_step_is_refused(path):
    other = path.rename(path.with_name("pruning-n4.json"))
    with pytest.raises(ValueError, match=r"pruning-n4.json is a record of step 'similarity', not of the one"):
        read_record(other)


def test_a_record_with_nan_is_refused(path):
    path.write_text(path.read_text().replace("0.25", "NaN"))
    with pytest.raises(ValueError, match="similarity.json is not complete JSON, or holds NaN or infinity: delete it"):
        read_record(path)


def test_missing_and_broken_records_name_the_fix(tmp_path):
    path = tmp_path / "pruning-n4.json"
    with pytest.raises(FileNotFoundError, match=r"n4.json does not exist yet: run notebooks/02_pruning.ipynb first"):
        read_record(path)
    path.write_text('{"step": ')
    with pytest.raises(ValueError, match="not complete JSON, or holds NaN or infinity: delete it and run notebooks/02"):
        read_record(path)


def test_every_step_has_its_notebook_and_its_type():
    assert list(records.NOTEBOOKS) == list(records.METRICS)


def test_record_names_are_for_people():
    path = Run.at("r").record("finetuning", block_size=4, data_set="pydoc", rows=48, seed=0)
    assert path.name == "finetuning-n4-pydoc-48rows-s0.json"


def test_records_of_another_original_model_are_refused():
    records = [
        {"step": "similarity", "metrics": {"weights": "abc"}},
        {"step": "pruning", "metrics": {"weights": "abc"}},
    ]
    check_model(records, "abc")
    records[1]["metrics"]["weights"] = "xyz"
    with pytest.raises(ValueError, match=r"step 'pruning' was made with another original model: run notebooks/02"):
        check_model(records, "abc")
