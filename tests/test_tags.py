"""Tags that somebody edited in MLflow are named."""

import time

import pytest
from mlflow.entities import Run, RunData, RunInfo, RunTag
from mlflow.entities.model_registry import ModelVersion

from pose.errors import InputError
from pose.member_key import MemberKey
from pose.tracking import tags


def run_with(**values: str) -> Run:
    info = RunInfo("ab12", "0", "me", "RUNNING", int(time.time() * 1000), None, "active")
    return Run(info, RunData(tags=[RunTag(key, value) for key, value in values.items()]))


def test_tags_as_we_write_them_are_read():
    run = run_with(seed="7", fold="2", seeds="7,8", folds="3", heartbeat="1000")
    assert tags.member_key(run) == MemberKey(7, 2)
    assert tags.seeds_of(run) == (7, 8)
    assert tags.folds_of(run) == 3
    assert tags.silence_of(run) > 1e9
    assert (tags.seeds_of(run_with()), tags.folds_of(run_with())) == ((), 0)


def test_a_machine_whose_clock_is_ahead_was_heard_of_just_now():
    assert tags.silence_of(run_with(heartbeat=str(time.time() + 9999))) == 0


@pytest.mark.parametrize(
    ("read", "values", "named"),
    [
        (tags.member_key, {"seed": "x"}, "the tag seed of run ab12 .* found 'x'"),
        (tags.member_key, {}, "the tag seed of run ab12 .* found none"),
        (tags.member_key, {"seed": "1", "fold": "one"}, "the tag fold of run ab12 .* found 'one'"),
        (tags.seeds_of, {"seeds": "1,two"}, "the tag seeds of run ab12 .* found '1,two'"),
        (tags.folds_of, {"folds": "many"}, "the tag folds of run ab12 .* found 'many'"),
        (tags.silence_of, {"heartbeat": "now"}, "the tag heartbeat of run ab12 .* found 'now'"),
    ],
)
def test_edited_tags_of_a_run_are_named(read, values, named):
    with pytest.raises(InputError, match=named):
        read(run_with(**values))


def test_a_version_without_its_seed_is_named():
    version = ModelVersion("pose", 3, 0)
    with pytest.raises(InputError, match=r"the tag seed of models:/pose/3 must be a whole number"):
        tags.member_key(version)
