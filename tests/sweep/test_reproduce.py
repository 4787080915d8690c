"""The one command around Snakemake: its lock, signals, and what it says when a disk is full."""

import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from sdd_utils.base import disk
from sdd_utils.sweep import reproduce

# Snakemake waits for its jobs at a SIGTERM, and in the background it hears no SIGINT. Without either it goes on with
# the next job when one has failed.
DEAF = """#!/bin/sh
trap '' INT HUP
trap told=1 TERM
sleep 60 &
echo $! > {folder}/job
while kill -0 $!; do wait $!; done
[ -n "$told" ] || sleep 61
exit 1
"""


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """A function that runs the command with a script in Snakemake's place; returns its exit status."""

    def run(script):
        program = tmp_path / "snakemake"
        program.write_text(script.format(folder=tmp_path))
        program.chmod(0o755)
        monkeypatch.setattr(reproduce, "GRACE", 0.1)
        monkeypatch.setattr(reproduce.sys, "executable", str(program))
        monkeypatch.setattr(sys, "argv", ["reproduce", "embedded", "--run", str(tmp_path / "run")])
        return reproduce.main()

    return run


def signal_once(path, number):
    """Send this process a signal as soon as a file is there."""

    def wait():
        while not path.exists() or not path.read_text():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=wait).start()


@pytest.mark.parametrize("number", reproduce.ENDED)
def test_a_signal_to_the_command_alone_ends_the_jobs_and_is_told_in_a_sentence(stand_in, tmp_path, capfd, number):
    former = signal.getsignal(number)
    signal_once(tmp_path / "job", number)
    started = time.time()
    assert stand_in(DEAF) == 128 + number
    assert time.time() - started < 30
    assert not psutil.pid_exists(int((tmp_path / "job").read_text()))
    assert capfd.readouterr().err.endswith("the same command goes on from there\n")
    assert signal.getsignal(number) is former


def test_a_signal_that_nohup_turns_off_stays_off(stand_in, tmp_path):
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        signal_once(tmp_path / "job", signal.SIGHUP)
        assert stand_in("#!/bin/sh\necho 1 > {folder}/job; sleep 1; exit 7") == 7
    finally:
        signal.signal(signal.SIGHUP, former)


def test_the_lock_is_kept_until_the_last_job_of_a_killed_snakemake_has_ended(stand_in):
    started = time.time()
    assert stand_in("#!/bin/sh\nsleep 2 &\nkill -9 $$") == -signal.SIGKILL
    assert time.time() - started > 1.9


def test_a_full_disk_is_the_last_thing_that_is_said(stand_in, capfd):
    for said in ("OSError: [Errno 28] No space left on device", f"error: 02_pruning: {disk.FULL}"):
        assert stand_in(f"#!/bin/sh\necho '{said}' >&2; echo 'WorkflowError: one job failed' >&2; exit 1") == 1
        assert capfd.readouterr().err.splitlines()[-2:] == ["WorkflowError: one job failed", f"error: {disk.FULL}"]
    assert stand_in("#!/bin/sh\necho 'WorkflowError: one job failed' >&2; exit 1") == 1
    assert capfd.readouterr().err == "WorkflowError: one job failed\n"


def test_what_a_killed_run_was_writing_is_removed_and_nothing_else(stand_in, tmp_path):
    kept = [tmp_path / "run" / "records" / "results.json", tmp_path / "run" / "adapters" / ".a.checkpoints-k-x1" / "c"]
    gone = [tmp_path / "run" / "records" / ".results.json.unfinished-ab"]
    gone += [tmp_path / "run" / "checkpoints" / ".n2.unfinished-cd" / "model.safetensors"]
    for path in kept + gone:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    stand_in("#!/bin/sh\nexit 1")
    assert [path.exists() for path in kept + gone] == [True, True, False, False]
    assert not gone[1].parent.exists()


def test_a_second_command_writes_nothing_into_a_run_that_another_holds(tmp_path):
    with reproduce.locked(tmp_path), pytest.raises(RuntimeError, match="another run is going on"):
        reproduce.run_jobs("embedded", run=str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_run_is_locked_as_long_as_a_process_that_it_started_lives(tmp_path):
    with reproduce.locked(tmp_path) as lock:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=(lock,))
    with pytest.raises(RuntimeError, match="another run is going on in .*: wait"), reproduce.locked(tmp_path):
        pass
    child.kill()
    child.wait()
    with reproduce.locked(tmp_path):
        pass
