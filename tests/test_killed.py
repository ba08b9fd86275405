"""A run that was killed goes on as if it had not been; `make faults` and its benchmark try more."""

import signal

import pytest

from benchmarks.faults.kills import Points
from benchmarks.faults.lab import Attempt, Lab

# Where the most is half done: the checkpoints change places; a version is registered, and its run
# does not know yet.
MOMENTS = ("os.rename /outputs/night/seed_1/previous_ckpt.pth", "commit insert logged_model_tags")


@pytest.fixture
def lab(tmp_path) -> Lab:
    return Lab(tmp_path, seeds="1", num_epochs=2)


def test_a_run_that_is_killed_twice_ends_like_one_that_was_not(lab):
    attempt = Attempt(lab, "killed")
    for moment in MOMENTS:
        log = attempt.folder / "points.txt"
        arm = Points(attempt.folder, log, kill_before=moment).arm
        done = attempt.finish(attempt.launch(attempt.training(), arm=arm))
        assert done.code == -signal.SIGKILL, done.text
    assert attempt.judge(attempt.training()) == ()
