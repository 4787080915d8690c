"""The cluster profile: each rule that runs on a node says what it needs, and nothing else limits it."""

import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
import yaml

from sdd_utils import ROOT
from sdd_utils.sweep import reproduce

PROFILE = yaml.safe_load((ROOT / "profiles" / "slurm" / "config.yaml").read_text())


def rules_on_nodes():
    """The Snakefile's rules without those that run where Snakemake does."""
    text = (ROOT / "Snakefile").read_text()
    local = re.search(r"^localrules: ([\w, ]+)", text, flags=re.M)[1].replace(" ", "").split(",")
    rules = set(re.findall(r"^rule (\w+):", text, flags=re.M))
    assert set(local) <= rules
    return rules - set(local)


def test_every_rule_on_a_node_has_its_memory_and_run_time():
    assert set(PROFILE["set-resources"]) == rules_on_nodes()
    for rule, asks in PROFILE["set-resources"].items():
        assert asks["mem_mb"] >= 1000, rule
        assert re.fullmatch(r"[1-9]\d*h", asks["runtime"]), rule
        assert asks.get("gpu", 0) == (0 if rule == "results" else 1), rule


def test_profile_survives_failed_and_preempted_jobs():
    assert PROFILE["executor"] == "slurm"
    assert PROFILE["retries"] >= 1
    assert PROFILE["keep-going"]
    assert PROFILE["slurm-requeue"]


def started(monkeypatch, tmp_path, *further):
    """What `reproduce` returns, and the Snakemake commands that it would start."""
    commands = []

    class Process:
        stderr, returncode = (), 1

        def __init__(self, command, **_):
            commands.append(command)

        def wait(self, timeout=None):
            return 1

    monkeypatch.setattr(reproduce.subprocess, "Popen", Process)
    monkeypatch.setattr(sys, "argv", ["reproduce", "embedded", "--run", str(tmp_path / "run"), *further])
    return reproduce.main(), commands


@pytest.mark.parametrize("run", [".", "..", "results/embedded", "results"])
def test_a_study_does_not_run_in_the_committed_results_or_around_the_repository(monkeypatch, tmp_path, capsys, run):
    assert started(monkeypatch, tmp_path, "--run", run) == (2, [])
    told = capsys.readouterr().err
    assert told == f"error: --run {run} holds the repository or lies in results/: name another folder\n"


@pytest.mark.parametrize(("name", "value"), [("SDD_DTYPE", "fp16"), ("SDD_ENGINE", "sglang")])
def test_a_wrong_environment_is_one_sentence_before_anything_starts(monkeypatch, tmp_path, capsys, name, value):
    monkeypatch.setenv(name, value)
    assert started(monkeypatch, tmp_path) == (2, [])
    assert capsys.readouterr().err.startswith(f"error: {name} is {value!r}: set it to")


def test_this_machine_does_not_limit_what_a_profile_asks_for(monkeypatch, tmp_path):
    (tmp_path / "config.yaml").write_text("executor: local\n")
    _, [here] = started(monkeypatch, tmp_path)
    _, [there] = started(monkeypatch, tmp_path, "--profile", str(tmp_path), "--dry-run")
    limits = {"--cores", "--resources"}
    assert limits <= set(here)
    assert "--profile" not in here
    assert not limits & set(there)
    assert not any("mem_mb" in word for word in there)
    assert there[-3:] == ["--profile", str(tmp_path), "--dry-run"]


@pytest.mark.parametrize(
    ("text", "mend"),
    [
        (None, "has no config.yaml: name a folder"),
        ("executor: nowhere\n", "'nowhere', which is not installed: install"),
    ],
)
def test_unusable_profile_is_told_in_one_sentence(monkeypatch, tmp_path, capsys, text, mend):
    if text:
        (tmp_path / "config.yaml").write_text(text)
    assert started(monkeypatch, tmp_path, "--profile", str(tmp_path)) == (2, [])
    told = capsys.readouterr().err
    assert mend in told
    assert told.count("\n") == 1


@pytest.mark.skipif(
    not find_spec("snakemake_executor_plugin_slurm"), reason="needs the extra: pip install -e '.[slurm]'"
)
def test_dry_run_accepts_every_setting(tmp_path):
    command = [sys.executable, "-m", "sdd_utils.sweep.reproduce", "embedded", "--run", str(tmp_path / "run")]
    command += ["--profile", "profiles/slurm", "--dry-run"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "This was a dry-run" in done.stdout + done.stderr
    assert all(rule in done.stdout + done.stderr for rule in rules_on_nodes())
