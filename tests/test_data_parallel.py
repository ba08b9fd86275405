"""One member in several processes: what one process would train, up to rounding."""

import contextlib
import copy
import dataclasses
import multiprocessing
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

import pytest
import torch
from said import Said

from pose.config import Recipe, Setup
from pose.data.tensors import TrainingData
from pose.display import NoDisplay
from pose.errors import DiedError, InputError
from pose.named_runs import resolve_run
from pose.plan import make_plan
from pose.seeds.engines import Processes, train_here
from pose.seeds.engines.crew import jobs_of_processes
from pose.seeds.folder import read_model
from pose.seeds.job import NoTracking, SeedJob
from pose.seeds.train import load_job_data
from pose.training.followers import follow, leading
from pose.training.loop import train
from pose.training.model import build_for_training
from pose.training.state import TrainState, start_state
from pose.training.step import Step, training_batch

CPU = torch.device("cpu")
LABELS = ("0", "1", "2")
NUM_TRAIN = 25
BASE = Recipe(
    model="simple_cnn",
    image_size=24,
    batch_size=5,
    accumulate=2,
    num_epochs=3,
    optimizer="adam",
    schedule="constant",
    learning_rate=1e-3,
    weight_decay=0.0,
    warmup_fraction=0.0,
    augmentation="ensemble_2",
    class_weighting="balanced",
)


@pytest.fixture(scope="module")
def data() -> TrainingData:
    return make_data()


def make_data() -> TrainingData:
    """25 images to train on, 6 to validate: three steps of ten, ten and five."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (NUM_TRAIN + 6,), generator=generator)
    images = torch.randint(0, 64, (len(labels), 3, 32, 32), generator=generator)
    images[:, 0] += 90 * labels.view(-1, 1, 1)
    rows = torch.arange(len(labels))
    return TrainingData(
        images=images.to(torch.uint8),
        labels=labels,
        train_rows=rows[:NUM_TRAIN],
        val_rows=rows[NUM_TRAIN:],
        mirrors=torch.tensor([1, 0, -1]),
    )


def start(recipe: Recipe) -> TrainState:
    return start_state(lambda: build_for_training(recipe, LABELS), recipe, 3, CPU)


def follow_all(jobs: Connection) -> None:
    """A process that follows whoever sends it a recipe and a connection."""
    torch.set_num_threads(1)
    while job := jobs.recv():
        recipe, link = job
        # One that follows has no average.
        state = start(dataclasses.replace(recipe, ema_decay=0.0))
        torch.manual_seed(999)  # whatever it was before
        follow(link, state, make_data(), recipe, torch.float32)


@pytest.fixture(scope="module")
def lead(data) -> Iterator[Callable]:
    """`leading` with one process that follows: the same for all tests, as its start is slow."""
    near, far = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=follow_all, args=(far,))
    process.start()

    def lead(recipe: Recipe, state: TrainState):
        link, its_link = multiprocessing.Pipe()
        near.send((recipe, its_link))
        its_link.close()
        return leading([link], state, data, recipe, torch.float32)

    yield lead
    near.send(None)
    process.join()
    assert process.exitcode == 0


def gradients_and_loss(step: Step, rows: torch.Tensor) -> tuple[dict[str, torch.Tensor], float]:
    kept = {}
    step._apply_gradients = lambda: kept.update(
        {name: p.grad for name, p in step.state.model.named_parameters()}
    )
    (loss,) = [float(step(batch)[0]) for batch in step.epoch(0, [rows])]
    return kept, loss


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("mixing", [{}, {"mixup_alpha": 0.5, "random_erasing": 0.5}])
def test_shares_of_a_batch_are_those_of_the_whole_batch(data, mixing, size):
    recipe = dataclasses.replace(BASE, **mixing)
    rows = data.train_rows[:11]
    images, labels, targets = training_batch(data, rows, recipe, torch.Generator().manual_seed(1))
    for rank in range(size):
        own = torch.arange(rank, 11, size)
        some, all_labels, own_targets = training_batch(
            data, rows, recipe, torch.Generator().manual_seed(1), own
        )
        torch.testing.assert_close(some, images[own], rtol=0, atol=1e-6)
        assert torch.equal(all_labels, labels)
        torch.testing.assert_close(own_targets, targets[own], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "num_rows"),
    [
        ({}, 10),
        ({"model": "pose_net", "cutmix_alpha": 1.0, "label_smoothing": 0.1}, 7),
        # Less images than processes: one goes along with an image that does not count.
        ({"class_weighting": "none"}, 1),
    ],
)
def test_gradients_of_a_step_are_those_of_one_process(data, lead, changes, num_rows):
    recipe = dataclasses.replace(BASE, **changes)
    rows, alone, led = data.train_rows[:num_rows], start(recipe), start(recipe)
    torch.manual_seed(5)
    expected, loss = gradients_and_loss(Step(alone, data, recipe, torch.float32), rows)
    torch.manual_seed(5)
    with lead(recipe, led) as step:
        found, own_loss = gradients_and_loss(step, rows)
    # A sum of a few dozen float32 numbers, added in another order.
    assert own_loss == pytest.approx(loss, rel=1e-5)
    for name, gradient in expected.items():
        # Where a value is at the edge of a ReLU, rounding decides on which side: each such pixel
        # is a few thousandths of a layer's gradient. Biases before batch norm have none but noise.
        difference = float((found[name] - gradient).norm())
        assert difference <= 1e-2 * float(gradient.norm()) + 1e-5, name
    # Statistics of batch norm have moved as far, and the same numbers were drawn.
    for name, value in alone.model.state_dict().items():
        torch.testing.assert_close(led.model.state_dict()[name], value, rtol=1e-4, atol=1e-6)
    assert torch.equal(alone.augment_generator.get_state(), led.augment_generator.get_state())


def test_training_follows_that_of_one_process_and_goes_on_bit_for_bit(data, lead):
    recipe = dataclasses.replace(BASE, ema_decay=0.9)
    alone, led = start(recipe), start(recipe)
    torch.manual_seed(5)
    train(Step(alone, data, recipe, torch.float32))
    torch.manual_seed(5)
    with lead(recipe, led) as step:
        assert train(step) == "epochs"
    for row, other in zip(led.history, alone.history, strict=True):
        # Rounding grows from step to step; statistics of half a batch are off by a tenth.
        assert row["train_loss"] == pytest.approx(other["train_loss"], rel=5e-3)
    # What is saved is what one process saves.
    assert {n: type(m) for n, m in led.model.named_modules()} == {
        n: type(m) for n, m in alone.model.named_modules()
    }

    broken, num_batches = start(recipe), []
    torch.manual_seed(5)
    saved = {}
    with lead(recipe, broken) as step:
        reason = train(
            step,
            stop=lambda: "signal" if len(num_batches) == 5 else None,
            progress=lambda done, total: num_batches.append(done),
            callbacks=[lambda state, row: saved.update(copy.deepcopy(state.state_dict()))],
        )
    assert reason == "signal"
    torch.manual_seed(6)
    resumed = start(recipe)
    resumed.load_state_dict(saved)
    assert resumed.num_epochs_done == 1
    with lead(recipe, resumed) as step:
        assert train(step) == "epochs"
    for name, value in led.best_weights.items():
        assert torch.equal(value, resumed.best_weights[name])
    for name, value in led.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])


class Asked:
    """Images that remember which rows were announced, and which were asked for."""

    device = CPU

    def __init__(self, images: torch.Tensor) -> None:
        self._images = images
        self.announced: list[list[int]] = []
        self.asked: list[list[int]] = []

    @contextlib.contextmanager
    def ahead(self, batches) -> Iterator[None]:
        self.announced = [rows.tolist() for rows in batches]
        yield

    def index_select(self, dim: int, rows: torch.Tensor) -> torch.Tensor:
        self.asked.append(rows.tolist())
        return self._images.index_select(dim, rows)


@pytest.mark.parametrize("changes", [{}, {"mixup_alpha": 0.5}])
def test_images_are_decoded_ahead_that_a_process_needs(data, lead, changes):
    recipe = dataclasses.replace(BASE, **changes)
    images = Asked(data.images)
    with lead(recipe, start(recipe)) as step:
        step.data = dataclasses.replace(data, images=images)
        for rows in step.epoch(0, data.train_rows.split(10)):
            step(rows)
    assert images.announced == images.asked
    assert sum(map(len, images.asked)) < NUM_TRAIN


class KillsAFollower(NoDisplay):
    """A display that kills a member's second process once it has shown an epoch."""

    def show_epoch(self, member, row, best_epoch) -> None:
        for process in multiprocessing.active_children():
            if process.name == "tiny, seed 4, process 2":
                process.kill()


class Record(NoTracking):
    """A tracker that remembers the epochs and the end."""

    def __init__(self) -> None:
        self.epochs: list[int] = []
        self.ends: list[tuple[str, str]] = []

    def log_epochs(self, history) -> None:
        self.epochs = [int(row["epoch"]) for row in history]

    def finish(self, status: str, stop_reason: str) -> None:
        self.ends.append((status, stop_reason))


def test_a_member_in_two_processes_outlives_the_death_of_one(tmp_path, stripes):
    recipe = dataclasses.replace(BASE, seeds=(4,), num_epochs=2, batch_size=16, accumulate=1)
    job = SeedJob(
        run="tiny",
        recipe=recipe,
        seed=4,
        dataset=stripes,
        output=tmp_path / "apart",
        device="cpu",
        precision="float32",
        threads=1,
        processes=2,
    )
    alone = dataclasses.replace(job, processes=1, output=tmp_path / "alone")
    loaded, record = load_job_data(job, NoDisplay()), Record()
    (expected,) = train_here(
        [alone], lambda job: Record(), NoDisplay(), lambda: None, loaded=loaded
    )

    train_apart = Processes(parallel=1)
    with pytest.raises(DiedError, match=r"seed 4 \(process 2 of 2 killed by SIGKILL\); the same"):
        list(train_apart([job], lambda job: record, KillsAFollower(), lambda: None, loaded=loaded))
    assert record.ends == [("KILLED", "killed")]
    assert record.epochs == [1]
    assert not [p for p in multiprocessing.active_children() if p.name.startswith("tiny")]

    said = Said()
    (result,) = train_apart([job], lambda job: record, said, lambda: None, loaded=loaded)
    assert result.session_seconds < result.seconds  # it went on
    assert record.epochs == [1, 2]
    assert record.ends[-1] == ("FINISHED", "epochs")
    for row, other in zip(result.history, expected.history, strict=True):
        assert row["train_loss"] == pytest.approx(other["train_loss"], rel=5e-3)
    model, _ = read_model(job.output)
    assert {type(m) for m in model.modules()} == {
        type(m) for m in build_for_training(recipe, ("0", "1")).modules()
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"processes_per_seed": 0}, "processes_per_seed must be at least 1, got 0"),
        ({"engine": "ray"}, "processes_per_seed must be 1 with engine=ray, got 3"),
        ({"device": "cuda:1"}, "device must be auto, cpu or cuda with processes_per_seed"),
        ({"batch_size": 2}, "processes_per_seed must be at most batch_size, 2, got 3: each"),
        ({"checkpointing": True}, "processes_per_seed must be 1 with checkpointing, got 3"),
    ],
)
def test_what_several_processes_cannot_do_is_refused(options, message):
    options = {"device": "cpu", "processes_per_seed": 3, **options}
    names = {field.name for field in dataclasses.fields(Recipe)}
    changes = {name: value for name, value in options.items() if name in names}
    options = {name: value for name, value in options.items() if name not in names}
    with pytest.raises(InputError, match=message):
        make_plan(resolve_run("ensemble_1", None, changes), Setup(**options))


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    setup = Setup(device="cuda", processes_per_seed=2, parallel=2, engine="processes")
    with pytest.raises(InputError, match="must be at most the number of GPUs, 3, got 4: each"):
        make_plan(resolve_run("ensemble_1", None, {}), setup)


def test_each_process_has_its_own_gpu_and_its_part_of_the_threads(monkeypatch, stripes, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    job = SeedJob(
        run="tiny",
        recipe=BASE,
        seed=4,
        dataset=stripes,
        output=tmp_path,
        device="cuda",
        processes=2,
    )
    assert [own.device for own in jobs_of_processes(job, place=1)] == ["cuda:2", "cuda:3"]
    plan = make_plan(
        resolve_run("ensemble_1", None, {}), Setup(device="cpu", threads=7, processes_per_seed=2)
    )
    assert plan.threads == 6
    assert plan.shared_params()["processes_per_seed"] == 2
    assert plan.recipe.digest() == resolve_run("ensemble_1", None, {}).recipe.digest()
