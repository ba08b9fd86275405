"""SIGKILL where it hurt once; `python -m benchmarks.faults` kills everywhere else."""

import pytest

from benchmarks.faults import kills, lab


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> lab.Lab:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lab, "SEEDS", (1,))
        patch.setattr(lab, "NUM_EPOCHS", 1)
        yield lab.Lab(tmp_path_factory.mktemp("kills"))


def test_a_kill_before_the_version_is_registered_loses_and_doubles_nothing(bench):
    (one,) = (one for one in kills.every_point(bench) if "insert model_versions" in one.name)
    assert one.run().problems == ()
