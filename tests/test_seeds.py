"""One seed as a unit of work, and the engine that trains several."""

import dataclasses
import multiprocessing
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from said import Said

from pose.config import Recipe
from pose.display import NoDisplay
from pose.errors import DivergedError, InputError
from pose.metrics import f1_of
from pose.predictions import read_predictions
from pose.seeds import folder as seed_folder
from pose.seeds.engines import SAVING_SECONDS, Budget, train_here
from pose.seeds.job import NoTracking, SeedJob
from pose.seeds.train import begin, load_job_data, train_seed, write_head_start
from pose.training.loop import train_for
from pose.training.predict import predict_logits, probs_of
from pose.training.step import Step

TINY = Recipe(model="simple_cnn", image_size=32, batch_size=16, num_epochs=3, seeds=(4, 5))


def job_in(folder: Path, dataset: Path, seed: int = 4, **changes) -> SeedJob:
    return SeedJob(
        run="tiny",
        recipe=dataclasses.replace(TINY, **changes),
        seed=seed,
        dataset=dataset,
        output=folder / f"seed_{seed}",
        device="cpu",
        precision="float32",
    )


def never() -> None:
    return None


def weights_of(job: SeedJob) -> dict[str, torch.Tensor]:
    return torch.load(job.output / seed_folder.WEIGHTS, weights_only=True)


class Listener(NoTracking):
    """A tracker that remembers how the seed ended."""

    def __init__(self) -> None:
        self.ends: list[tuple[str, str]] = []

    def finish(self, status: str, stop_reason: str) -> None:
        self.ends.append((status, stop_reason))


def train_with_torch_alone(job: SeedJob) -> None:
    # Each of them takes seconds to import; from now on that fails.
    for name in ("mlflow", "sklearn", "scipy", "torch._dynamo"):
        assert name not in sys.modules
        sys.modules[name] = None
    torch.set_num_threads(1)
    with pytest.raises(ImportError):
        import mlflow  # noqa: F401
    train_seed(job, load_job_data(job, NoDisplay()), NoTracking(), NoDisplay(), never)


def test_a_process_with_torch_alone_trains_the_same_weights(tmp_path, stripes):
    here, there = job_in(tmp_path / "here", stripes), job_in(tmp_path / "there", stripes)
    process = multiprocessing.get_context("spawn").Process(
        target=train_with_torch_alone, args=(there,)
    )
    process.start()
    train_seed(here, load_job_data(here, NoDisplay()), NoTracking(), NoDisplay(), never)
    process.join(120)
    assert process.exitcode == 0
    ours, theirs = weights_of(here), weights_of(there)
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_seeds_of_an_engine_come_in_order_and_differ(tmp_path, stripes):
    jobs = [job_in(tmp_path, stripes, seed) for seed in (4, 5)]
    loaded = load_job_data(jobs[0], NoDisplay())
    trackers = {job.seed: Listener() for job in jobs}
    results = list(
        train_here(jobs, lambda job: trackers[job.seed], NoDisplay(), never, loaded=loaded)
    )
    assert [result.seed for result in results] == [4, 5]
    assert [tracker.ends for tracker in trackers.values()] == [[("FINISHED", "epochs")]] * 2
    first, second = (seed_folder.read_model(job.output)[1] for job in jobs)
    assert first.weights_sha256 != second.weights_sha256


def test_what_is_written_of_validation_is_what_the_saved_weights_say(tmp_path, stripes):
    job = job_in(tmp_path, stripes)
    loaded = load_job_data(job, NoDisplay())
    result = train_seed(job, loaded, NoTracking(), NoDisplay(), never)
    written = read_predictions(job.output / seed_folder.VAL_PREDICTIONS)

    model, _ = seed_folder.read_model(job.output)
    row_of = dict(zip(loaded.dataset.ids, loaded.rows.tolist(), strict=True))
    rows = torch.tensor([row_of[image_id] for image_id in written.ids])
    logits = predict_logits(model, loaded.images, rows, torch.float32)
    np.testing.assert_allclose(written.probs, probs_of(logits), atol=1e-5)
    assert f1_of(written.probs, written.labels) == pytest.approx(result.val_f1)


def test_a_stopped_seed_is_killed_and_ends_the_engine(tmp_path, stripes):
    jobs = [job_in(tmp_path, stripes, seed) for seed in (4, 5)]
    loaded = load_job_data(jobs[0], NoDisplay())
    tracker = Listener()
    asked = iter([None, None, None])
    results = list(
        train_here(
            jobs, lambda job: tracker, NoDisplay(), lambda: next(asked, "signal"), loaded=loaded
        )
    )
    assert [result.stop_reason for result in results] == ["signal"]
    assert tracker.ends == [("KILLED", "signal")]


def test_a_seed_that_diverges_fails_by_name_and_leaves_no_model(tmp_path, stripes):
    job = job_in(tmp_path, stripes, optimizer="adam", learning_rate=1e12, schedule="constant")
    tracker = Listener()
    with pytest.raises(DivergedError, match="^seed 4: "):
        list(
            train_here(
                [job],
                lambda job: tracker,
                NoDisplay(),
                never,
                loaded=load_job_data(job, NoDisplay()),
            )
        )
    assert tracker.ends == [("FAILED", "diverged")]
    assert not (job.output / seed_folder.WEIGHTS).exists()


def test_an_error_is_reported_as_one(tmp_path, stripes):
    job = job_in(tmp_path, stripes)
    tracker = Listener()

    class Broken(NoDisplay):
        def show_epoch(self, *_):
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        train_seed(job, load_job_data(job, NoDisplay()), tracker, Broken(), never)
    assert tracker.ends == [("FAILED", "error")]


def test_a_label_that_looks_like_mathematics_is_drawn(tmp_path, make_dataset):
    data = make_dataset(tmp_path / "data", labels=("$x$ costs $", r"$\bad{"), num_per_class=20)
    job, display = job_in(tmp_path, data), Said()
    train_seed(job, load_job_data(job, display), NoTracking(), display, never)
    assert not [line for line in display.lines if "could not be drawn" in line]
    assert (job.output / seed_folder.CONFUSION_PLOT).stat().st_size > 1000


# Checkpoints


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, stripes) -> SeedJob:
    """A seed that was stopped in its third epoch, with two checkpoints."""
    job = job_in(tmp_path_factory.mktemp("stopped"), stripes)
    epochs = []

    class Counting(NoDisplay):
        def show_epoch(self, *_):
            epochs.append(1)

    loaded = load_job_data(job, NoDisplay())
    stop = lambda: "signal" if len(epochs) == 2 else None  # noqa: E731
    result = train_seed(job, loaded, NoTracking(), Counting(), stop)
    assert result.num_epochs == 2
    return job


class Recorded(NoTracking):
    """Has the checkpoint of a stopped seed, as a tracking store has it."""

    def __init__(self, recorded: Path) -> None:
        self._recorded = recorded

    def fetch_checkpoint(self, folder: Path) -> Path:
        return Path(shutil.copy(self._recorded, folder / seed_folder.CHECKPOINT))


def continue_from(
    stopped: SeedJob, folder: Path, tracker: NoTracking | None = None, **changes
) -> tuple[int, list[str]]:
    """Finish a copy of the stopped seed: epochs that it began with, and what was said."""
    display, begun_with = Said(), []
    display.start_seed = lambda seed, recipe, num_epochs_done, time_limit: (
        begun_with.append(num_epochs_done) or (lambda done, total: None)
    )
    job = dataclasses.replace(
        stopped, output=folder, recipe=dataclasses.replace(stopped.recipe, **changes)
    )
    train_seed(job, load_job_data(job, display), tracker or NoTracking(), display, never)
    return begun_with[0], display.lines


@pytest.fixture
def copied(stopped, tmp_path) -> Path:
    folder = tmp_path / "seed_4"
    folder.mkdir()
    for name in (seed_folder.CHECKPOINT, seed_folder.PREVIOUS_CHECKPOINT):
        (folder / name).write_bytes((stopped.output / name).read_bytes())
    return folder


def flip_bit(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at // 8] ^= 1 << at % 8
    path.write_bytes(data)


def test_every_flipped_bit_of_a_checkpoint_is_noticed(copied):
    path = copied / seed_folder.CHECKPOINT
    whole = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(len(whole) * 8, (400,), generator=generator).tolist()
    # The last bytes are the seal itself.
    for at in [*places, len(whole) * 8 - 1, len(whole) * 8 - 600]:
        flip_bit(path, at)
        with pytest.raises(InputError, match="must be a whole checkpoint"):
            seed_folder.read_checkpoint(path)
        path.write_bytes(whole)
    seed_folder.read_checkpoint(path)


def test_torch_reads_a_sealed_checkpoint(copied):
    loaded = torch.load(copied / seed_folder.CHECKPOINT, weights_only=True)
    assert len(loaded["history"]) == 2


def test_a_whole_checkpoint_is_continued_in_silence(stopped, copied):
    assert continue_from(stopped, copied) == (2, [])


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "flipped"])
def test_a_damaged_checkpoint_costs_one_epoch(stopped, copied, damage):
    path = copied / seed_folder.CHECKPOINT
    data = path.read_bytes()
    if damage == "flipped":
        flip_bit(path, 8 * len(data) // 2)
    else:
        path.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "text": b"hello"}[damage])
    begun_with, lines = continue_from(stopped, copied)
    assert begun_with == 1
    (line,) = lines
    assert "must be a whole checkpoint" in line
    assert line.endswith(f"seed 4 goes on from {copied / seed_folder.PREVIOUS_CHECKPOINT}")


def test_the_recorded_checkpoint_stands_in_for_two_damaged_ones(stopped, copied):
    for name in (seed_folder.CHECKPOINT, seed_folder.PREVIOUS_CHECKPOINT):
        (copied / name).write_text("hello")
    tracker = Recorded(stopped.output / seed_folder.CHECKPOINT)
    begun_with, (line,) = continue_from(stopped, copied, tracker)
    assert begun_with == 2
    assert line.endswith("seed 4 goes on from the one that was recorded in MLflow")


@pytest.mark.parametrize(
    "changes", [{"learning_rate": 1e-4}, {"num_epochs": 4}, {"batch_size": 8}, {"ema_decay": 0.0}]
)
def test_a_checkpoint_of_another_recipe_is_not_used(stopped, copied, changes):
    begun_with, lines = continue_from(stopped, copied, **changes)
    assert begun_with == 0
    assert lines[0].endswith("seed 4 begins anew")


def test_a_checkpoint_of_another_seed_is_not_used(stopped, copied):
    begun_with, lines = continue_from(dataclasses.replace(stopped, seed=5), copied)
    assert begun_with == 0
    assert "seed 5 begins anew" in lines[0]


def test_weights_that_are_not_the_saved_ones_are_refused(tmp_path, stripes):
    jobs = [job_in(tmp_path, stripes, seed) for seed in (4, 5)]
    loaded = load_job_data(jobs[0], NoDisplay())
    list(train_here(jobs, lambda job: NoTracking(), NoDisplay(), never, loaded=loaded))
    first, second = (job.output / seed_folder.WEIGHTS for job in jobs)
    first.write_bytes(second.read_bytes())
    with pytest.raises(InputError, match="member 4 must have the weights that were saved"):
        seed_folder.read_model(jobs[0].output, "member 4")


# Budget


def test_each_seed_has_an_equal_share_of_what_the_others_left():
    budget = Budget(100, 4)
    assert budget.share() == pytest.approx(25 - SAVING_SECONDS)
    budget.spend(20, overhead=10)
    assert budget.share() == pytest.approx(70 / 3 - 10)
    budget.spend(30, overhead=0)
    assert budget.share() == pytest.approx(40 / 2 - 5)


def test_a_share_is_never_nothing():
    budget = Budget(10, 2)
    budget.spend(40)
    assert budget.share() > 0


def test_a_member_goes_on_from_a_trial_and_its_history_is_its_own(tmp_path, stripes):
    job = dataclasses.replace(job_in(tmp_path, stripes, freeze_epochs=1), time_limit=1.0)
    loaded = load_job_data(job, NoDisplay())
    state, data, precision = begin(job, loaded)
    assert train_for(Step(state, data, job.recipe, precision), 0.4, of=2.0)
    source = tmp_path / "round_1_candidate_1.pth"
    kept = {**state.state_dict(), "precision": str(precision)}
    source.write_bytes(seed_folder.checkpoint_bytes(kept))

    assert write_head_start(job, loaded, source) == pytest.approx(state.seconds)
    said = Said()
    result = train_seed(job, loaded, NoTracking(), said, never)
    assert said.text == ""
    assert result.history[0]["epoch"] == 1
    # The limit is for what comes now.
    assert 0.9 < result.seconds < 2.0
    after = seed_folder.read_checkpoint(job.output / seed_folder.CHECKPOINT)
    assert after["head_start"] == pytest.approx(state.seconds)

    data = source.read_bytes()
    source.write_bytes(data[:-100] + bytes([data[-100] ^ 1]) + data[-99:])
    with pytest.raises(InputError, match=r"round_1_candidate_1\.pth must be a whole checkpoint"):
        write_head_start(job, loaded, source)
