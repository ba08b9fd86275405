"""Requests to stop, as processes receive them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from project import PATIENCE

from pose.stop import StopRequest

ROOT = Path(__file__).parents[1]
# Says when it listens; `asks` says whether somebody asks whether to stop.
LISTENER = """
import sys, time
from pathlib import Path
from pose.stop import StopRequest
asks, with_parent = (word == "yes" for word in sys.argv[1:])
stop = StopRequest(Path.cwd())
stop.listen(ends_with_parent=with_parent)
print("listening", flush=True)
started = time.monotonic()
while not (asks and stop()) and time.monotonic() - started < 60:
    time.sleep(0.01)
print("reason:", stop.reason, flush=True)
"""
# Starts a listener as `mlflow run` does, says its number, and waits to be killed.
STARTER = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, *sys.argv[1:]], stderr=subprocess.DEVNULL)
print(child.pid, flush=True)
time.sleep(60)
"""


def start(folder: Path, *command: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_training_ends_the_process_at_once(tmp_path, number):
    process = start(tmp_path, "-c", LISTENER, "no", "no")
    assert process.stdout.readline() == "listening\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + number
    assert (out, err.strip()) == ("", "stopped before training began")


SLOW_MODULE = """
import time
print("importing", flush=True)
try:
    time.sleep(60)
except BaseException as error:
    raise RecursionError("as libraries do") from error
"""


def test_a_signal_amid_an_import_ends_the_process_whatever_the_module_makes_of_it(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW_MODULE)
    code = LISTENER.partition("started =")[0] + "import slow"
    process = start(tmp_path, "-c", code, "no", "no")
    assert process.stdout.readline() == "listening\n"
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (128 + signal.SIGTERM, "")
    assert err.strip() == "stopped before training began"


def test_a_signal_while_training_waits_for_the_batch(tmp_path):
    process = start(tmp_path, "-c", LISTENER, "yes", "no")
    assert process.stdout.readline() == "listening\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (0, "reason: signal\n")
    assert "stopping after this batch" in err


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
@pytest.mark.parametrize("delay", [0, 0.02, 0.1, 0.5])
def test_what_mlflow_run_started_ends_with_it(tmp_path, delay):
    starter = start(tmp_path, "-c", STARTER, "-c", LISTENER, "no", "yes")
    pid = int(starter.stdout.readline())
    # Before the child's first line, while it imports, and while it works.
    time.sleep(delay)
    starter.kill()
    starter.communicate()
    deadline = time.monotonic() + 60
    while is_alive(pid):
        assert time.monotonic() < deadline, "it runs on unseen"
        time.sleep(0.02)


def test_a_system_without_prctl_trains_all_the_same(tmp_path, monkeypatch):
    previous = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr("ctypes.CDLL", None)
    monkeypatch.setattr("os.getppid", os.getpid)  # in the same session, however pytest was started
    try:
        StopRequest(tmp_path).listen(ends_with_parent=True)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def test_a_stop_file_is_new_whatever_its_clock_says(tmp_path):
    path = tmp_path / "stop.txt"
    path.touch()
    os.utime(path, (2e9, 2e9))
    stop = StopRequest(tmp_path)
    assert stop.has_stale_file()
    assert stop() is None
    path.unlink()
    assert not stop.has_stale_file()
    # Made by a machine whose clock is years behind; anything by that name will do.
    path.symlink_to("nowhere")
    os.utime(path, (1e9, 1e9), follow_symlinks=False)
    assert stop() == "stop_file"


# Starts a program, and ends a while later.
ENDING_LATER = """
import os, subprocess, sys, threading, time
child = subprocess.Popen([sys.executable, *sys.argv[1:]])
threading.Timer(0.2, lambda: os._exit(0)).start()
"""
WAITER = """
import sys
from pose.stop import becomes_orphan, is_orphan
print(is_orphan(), becomes_orphan(20), is_orphan(), flush=True)
"""


def test_a_stop_file_may_lie_in_the_project_or_where_the_user_is(tmp_path):
    project, user = tmp_path / "project", tmp_path / "user"
    for place in (project, user):
        place.mkdir()
    (project / "stop.txt").touch()
    stop = StopRequest(project, user)
    assert stop() is None
    assert stop.has_stale_file()
    (user / "stop.txt").touch()
    assert stop() == "stop_file"


def test_an_orphan_is_known_although_its_parent_takes_a_while_to_end(tmp_path):
    process = start(tmp_path, "-c", ENDING_LATER, "-c", WAITER)
    out, _ = process.communicate(timeout=PATIENCE)
    assert out.split()[1:] == ["True", "True"]
    waited = time.monotonic()
    child = start(tmp_path, "-c", "from pose.stop import becomes_orphan; print(becomes_orphan())")
    assert child.communicate(timeout=PATIENCE)[0] == "False\n"
    assert time.monotonic() - waited < 20


# Begins something in a folder and works at it for ever; a library sleeps in its import meanwhile.
UNSTOPPABLE = """
import sys, tempfile, time
from pathlib import Path
import click
from entrypoints.options import run_command

@click.command()
def main():
    with tempfile.TemporaryDirectory(dir=".") as staging:
        print("begun", flush=True)
        if Path("slow.py").exists():
            import slow
        while True:
            time.sleep(0.01)

run_command(main)
"""
CLUMSY_MODULE = """
import time
try:
    time.sleep(1)
except BaseException as error:
    raise RecursionError("as libraries do") from error
"""


@pytest.mark.parametrize("how", ["a signal", "a signal amid an import", "stop.txt"])
def test_a_command_that_cannot_go_on_later_ends_where_it_is_and_clears_up(tmp_path, how):
    if how == "a signal amid an import":
        (tmp_path / "slow.py").write_text(CLUMSY_MODULE)
    process = start(tmp_path, "-c", UNSTOPPABLE)
    assert process.stdout.readline() == "begun\n"
    if how == "stop.txt":
        (tmp_path / "stop.txt").touch()
    else:
        process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + signal.SIGTERM
    reason = "stop_file" if how == "stop.txt" else "signal"
    assert err.strip() == f"stopped ({reason}): the same command can be given again"
    assert {path.name for path in tmp_path.iterdir()} <= {"slow.py", "stop.txt", "__pycache__"}


def test_a_command_that_has_no_other_end_does_not_fail_by_it(tmp_path):
    endless = UNSTOPPABLE.replace("run_command(main)", "run_command(main, is_endless=True)")
    process = start(tmp_path, "-c", endless)
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err.strip()) == (0, "stopped (signal)")
    assert list(tmp_path.iterdir()) == []


def test_what_ends_by_itself_is_not_made_a_failure_by_a_late_signal(tmp_path):
    code = """
import atexit, os, signal, click
from entrypoints.options import run_command
atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))
run_command(click.command()(lambda: print("done")))
"""
    process = start(tmp_path, "-c", code)
    assert process.communicate(timeout=PATIENCE) == ("done\n", "")
    assert process.returncode == 0
