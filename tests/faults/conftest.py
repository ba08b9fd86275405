"""The campaign of faults: strange input of many kinds, each read right or named in one line.

`make faults` runs it. Every test is one case; at the end the outcomes are counted.
"""

import collections
import resource
import signal
import stat
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from project import Project
from undisturbed import SMALL

from pose.errors import InputError
from pose_models.decode import BadImageError

# Memory beyond what the interpreter with torch has before the first case, in bytes.
MAX_MEMORY = 2 << 30
MAX_SECONDS = 20
OUTCOMES = ("right", "named", "wrong", "traceback", "hang")
_counts: collections.Counter = collections.Counter()


class _Hang(BaseException):
    """Not an Exception: nothing that is tested may catch it."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.faults)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _counts:
        counts = ", ".join(f"{outcome} {_counts[outcome]}" for outcome in OUTCOMES)
        terminalreporter.write_line(f"faults: {sum(_counts.values())} cases: {counts}")


@pytest.fixture(scope="session", autouse=True)
def limited_memory():
    """More memory than `MAX_MEMORY` beyond the start is a MemoryError, and so a traceback."""
    import torch  # noqa: F401  what it maps is no case's doing

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + MAX_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.fixture(scope="module")
def all_memory(limited_memory):
    """The limit is for strange input; a process started here would share it with its libraries."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.fixture(scope="session")
def data(tmp_path_factory, make_dataset) -> Path:
    """140 labelled images of two classes."""
    folder = tmp_path_factory.mktemp("faults_data") / "data"
    return make_dataset(folder, num_per_class=(80, 60), size=40, num_test=4)


@pytest.fixture(scope="session")
def here(tmp_path_factory, data) -> Project:
    """A run of seeds 1, 2 and 3, trained one after another in one process."""
    project = Project(tmp_path_factory.mktemp("here") / "pose")
    project.run(*project.train_command(dataset=data, **SMALL, seeds="1,2,3"))
    return project


def state_of(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Kind, size and time of change of everything below `folder`."""
    return {
        str(path.relative_to(folder)): (
            stat.S_IFMT(status.st_mode),
            status.st_size,
            status.st_mtime_ns,
        )
        for path in folder.rglob("*")
        if (status := path.lstat())
    }


@pytest.fixture(scope="session")
def judge() -> Callable[..., str]:
    """Runs an action and counts what became of it.

    `judge(act, is_right, inputs)`: `is_right` judges the action's value; None: there is no right
    reading, it must be named. `inputs`: a folder that must be the same afterwards. Returns the
    message where it was named, else "".
    """

    def run(
        act: Callable[[], Any],
        is_right: Callable[[Any], bool] | None,
        inputs: Path | None = None,
    ) -> str:
        before = state_of(inputs) if inputs else {}
        outcome, message = _outcome(act, is_right)
        if inputs and state_of(inputs) != before:
            outcome, message = "wrong", "the input was written to"
        _counts[outcome] += 1
        assert outcome in ("right", "named"), f"{outcome}: {message}"
        return message

    return run


def _outcome(act: Callable[[], Any], is_right: Callable[[Any], bool] | None) -> tuple[str, str]:
    def hang(signum, frame):
        raise _Hang

    previous = signal.signal(signal.SIGALRM, hang)
    signal.setitimer(signal.ITIMER_REAL, MAX_SECONDS)
    try:
        value = act()
    except (InputError, BadImageError) as error:
        message = str(error)
        is_line = bool(message) and "\n" not in message and len(message) < 3000
        return ("named", message) if is_line else ("wrong", f"not a line: {message!r}")
    except _Hang:
        return "hang", f"more than {MAX_SECONDS} s"
    except Exception:
        return "traceback", traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    if is_right is None:
        return "wrong", f"read as {value!r}"[:500]
    return ("right", "") if is_right(value) else ("wrong", f"read as {value!r}"[:500])
