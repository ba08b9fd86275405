"""A part of `python -m benchmarks.faults`: what it finds is a failure here."""

import signal
from collections.abc import Iterable
from itertools import islice

import pytest

from benchmarks.faults import damage, kills, stops
from benchmarks.faults.lab import RUN, Attempt, Lab
from benchmarks.faults.outcome import Try


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Lab:
    return Lab(tmp_path_factory.mktemp("faults"))


def assert_survived(tries: Iterable[Try]) -> None:
    problems = {one.name: one.run().problems for one in tries}
    assert {name: found for name, found in problems.items() if found} == {}


def test_kills_at_every_tenth_point(bench):
    assert_survived(islice(kills.every_point(bench), 0, None, 10))


def test_kills_at_random_moments(bench):
    assert_survived(kills.random_kills(bench, 5))


def test_a_run_that_goes_on_in_another_folder_says_what_it_leaves_behind(bench):
    attempt = Attempt(bench, "elsewhere")
    process = attempt.launch(attempt.training())
    attempt.wait_for_epochs(process, RUN, 1, 2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = attempt.do(attempt.training(output_root="elsewhere"))
    assert done.code == 0, done.text
    assert f"warning: this run was in {attempt.run_folder}, what only lies there" in done.text
    assert f"give --output-root {attempt.run_folder.parent}\n" in done.text


def test_kills_of_mlflow_run(bench):
    assert_survived(kills.random_kills_of_mlflow(bench, 2))


def test_stops(bench):
    assert_survived(stops.stops(bench, 2))


def test_stops_of_mlflow_run(bench):
    assert_survived(stops.stops_of_mlflow(bench, 1))


def test_damage(bench):
    assert_survived(damage.flipped_bits(bench, 100))
    assert_survived(damage.finished_members(bench))
