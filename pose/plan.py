"""What a run is going to be, checked and worked out once, before anything is trained.

A dry run stops after it: it refuses what the run would refuse.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pose.cluster import check_ray
from pose.config import Recipe, Setup
from pose.data.cache import cache_root_of
from pose.data.exclusion import digest_of_tables, read_all_excluded, tables_of
from pose.data.folder import Dataset, read_dataset
from pose.data.source import locate_dataset
from pose.data.split import num_twins, split_rows, unvalidated_classes
from pose.data.tensors import excluded_ids
from pose.device import describe, pick_device, pick_precision
from pose.errors import InputError, first_few, known, one_line, printable
from pose.files import check_room, reason_of
from pose.member_key import MemberKey
from pose.named_runs import ResolvedRun
from pose.training.augment import PRESETS
from pose.training.group import can_add
from pose.training.model import build_for_training
from pose.weights import Transfer, match, read_weights
from pose_models import MODELS, ImageClassifier, ModelError, check_model_name, own_image_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A run before its first step.

    Attributes:
        run: its name, recipe and changes.
        setup: where it happens.
        folder: where the seeds' folders lie.
        texts: what else the run keeps as artifacts, by file name.
        head_start: the file of a state that the first member goes on from; None: from scratch.
    """

    run: ResolvedRun
    setup: Setup
    device: torch.device
    precision: torch.dtype
    folder: Path
    texts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    head_start: Path | None = None

    @property
    def recipe(self) -> Recipe:
        """What the seeds learn."""
        return self.run.recipe

    @property
    def threads(self) -> int:
        """CPU threads of each member, as many for each of its processes."""
        number = self.setup.processes_per_seed
        return number * max(1, member_threads(self.setup) // number)

    @property
    def cache_root(self) -> Path:
        """Folder of decoded images."""
        return cache_root_of(self.setup.cache_root)

    def check_data(self, dataset: Dataset) -> None:
        """Refuse data that this plan cannot be carried out on.

        Raises:
            InputError: the data contradicts itself, cannot be split, the model cannot be built
                for its classes, or the disk has no room for what it will leave.
        """
        dataset.raise_if_fatal()
        for member in self.recipe.members(self.recipe.seeds):
            split_rows(dataset.labels, self.recipe, member, dataset.groups)
        num_bytes = self._needed_bytes(_check_model(self.recipe, dataset.classes.labels))
        self.transfer(dataset.classes.labels)
        check_room(self.folder.parent, num_bytes, "output_root", "checkpoints and weights")

    def _needed_bytes(self, weight_bytes: int) -> int:
        """What the members will leave at least, besides what is there already.

        Args:
            weight_bytes: of one model.
        """
        # Weights, the best ones, the optimizer's moments, the moving average.
        copies = 3 + (self.recipe.optimizer != "muon") + (self.recipe.ema_decay > 0)
        # A member keeps one checkpoint and its weights; one that trains keeps two checkpoints.
        num_members = len(self.recipe.members(self.recipe.seeds))
        needed = weight_bytes * ((copies + 1) * num_members + copies)
        found = self.folder.rglob("*") if self.folder.is_dir() else ()
        return needed - sum(path.stat().st_size for path in found if path.is_file())

    def transfer(self, labels: tuple[str, ...]) -> Transfer | None:
        """What a network for these classes takes of the weights to start from, if there are any.

        Raises:
            InputError: less than half of it.
        """
        if self.recipe.weights is None:
            return None
        weights, _ = read_weights(self.recipe, self.cache_root)
        # Shapes are enough, except for networks that cannot be built without memory.
        try:
            network = _build(self.recipe, labels, torch.device("meta")).network
        except NotImplementedError:
            network = _build(self.recipe, labels, torch.device("cpu")).network
        return match(network, weights)

    def warnings(self, dataset: Dataset) -> list[str]:
        """What the split makes of rare classes and of groups; all of `dataset` can be split."""
        missing = unvalidated_classes(dataset.labels, self.recipe, dataset.groups)
        names = [dataset.classes.labels[c] for c in missing]
        lines = []
        if names:
            lines.append(
                f"{len(names)} classes without a validation image (val_f1 says nothing about "
                f"them): {first_few(map(printable, names))}"
            )
        member = self.recipe.members(self.recipe.seeds)[0]
        train, val = split_rows(dataset.labels, self.recipe, member, dataset.groups)
        for shared, groups in dataset.groups.kinds().items():
            twins = num_twins(groups, train, val)
            if twins:
                lines.append(
                    f"{twins} of the {len(val)} images that validate {member} have {shared} of one "
                    "that trains it, which flatters val_f1; keep_groups=true keeps them together"
                )
        return lines

    def tags(self) -> dict[str, str]:
        """The tags of the run and its members in MLflow."""
        folds = {"folds": str(self.recipe.folds)} if self.recipe.folds else {}
        return {
            **folds,
            "run": self.run.name,
            "model": self.recipe.model,
            "recipe": self.run.title(),
            "is_changed": str(bool(self.run.changes)).lower(),
            "model_format": self.setup.model_format,
            "registry_name": self.setup.registry_name,
        }

    def params(self, member: MemberKey) -> dict[str, Any]:
        """The parameters of a member in MLflow: every setting that decides what it learns."""
        return {**member.tags(), **self.shared_params()}

    def shared_params(self) -> dict[str, Any]:
        """The parameters that all members have."""
        params = dataclasses.asdict(self.recipe)
        del params["seeds"]
        number = self.setup.processes_per_seed
        return {
            **params,
            **({"processes_per_seed": number} if number > 1 else {}),
            "recipe": self.run.title(),
            "device": self.device,
            "precision": str(self.precision).removeprefix("torch."),
            "threads": self.threads,
        }

    def text(self) -> str:
        """The plan, a setting per line; what differs from the named run is marked."""
        lines = [f"run: {self.run.name} ({self.run.title()})"]
        for part in (self.recipe, self.setup):
            for field in dataclasses.fields(part):
                lines.append(_setting_line(field.name, getattr(part, field.name), self.run.changes))
        lines.append(f"on {describe(self.device, self.precision)}, into {self.folder}")
        return "\n".join(lines)


def member_threads(setup: Setup) -> int:
    """CPU threads of each member."""
    if setup.threads:
        return setup.threads
    if setup.engine == "ray":
        # What this machine has says nothing of the cluster's.
        return 1
    return max(1, torch.get_num_threads() // (setup.parallel or 1))


def make_plan(run: ResolvedRun, setup: Setup) -> Plan:
    """The plan of a run, checked as far as possible without its data.

    Raises:
        InputError: a value that cannot be used.
    """
    if setup.engine == "ray":
        check_ray()
    try:
        check_model_name(run.recipe.model)
        if run.recipe.image_size == 0:
            size = own_image_size(run.recipe.model)
            run = dataclasses.replace(run, recipe=dataclasses.replace(run.recipe, image_size=size))
    except ValueError as error:
        raise InputError(str(error)) from None
    if run.recipe.augmentation not in PRESETS:
        raise InputError(
            f"augmentation must be one of {known(PRESETS)}, got {run.recipe.augmentation!r}"
        )
    if setup.model_format == "pt2" and run.recipe.framing != "resize":
        # Its graph is that of one way through the framing; images of other sizes take another.
        raise InputError(f"model_format must be pickle with framing {run.recipe.framing}, got pt2")
    folder = Path(setup.output_root) / run.name
    if run.recipe.exclude is not None:
        run = dataclasses.replace(run, recipe=_with_exclusion(run.recipe, folder))
    if run.recipe.weights is not None:
        _check_outside("weights", Path(run.recipe.weights), folder)
        _, digest = read_weights(run.recipe, cache_root_of(setup.cache_root))
        run = dataclasses.replace(
            run, recipe=dataclasses.replace(run.recipe, weights_sha256=digest)
        )
    device = pick_device(setup.device)
    if setup.processes_per_seed > 1:
        _check_processes(run.recipe, setup, device)
    _check_folder(folder)
    return Plan(
        run=run,
        setup=setup,
        device=device,
        precision=pick_precision(setup.precision, device),
        folder=folder,
    )


def _check_folder(folder: Path) -> None:
    """Refuse a place where the run's folder cannot be.

    Raises:
        InputError: a file is there, or nothing can be, as where a name is too long.
    """
    try:
        folder.lstat()
        is_folder = folder.is_dir()
    except (FileNotFoundError, NotADirectoryError):
        # What else is in the way is named when the folder is made.
        return
    except OSError as error:
        raise InputError(
            f"output_root must be a folder that can be made, found: {reason_of(error)}"
        ) from error
    if not is_folder:
        raise InputError(f"output_root must have room for the folder {folder}, found a file there")


def _check_processes(recipe: Recipe, setup: Setup, device: torch.device) -> None:
    """Refuse several processes per member where they have nothing to do, or nothing to do it on.

    Raises:
        InputError: that is so.
    """
    number = setup.processes_per_seed
    if number > recipe.batch_size:
        raise InputError(
            f"processes_per_seed must be at most batch_size, {recipe.batch_size}, got {number}: "
            "each process has a part of every batch"
        )
    if recipe.checkpointing:
        # What is computed anew is computed without the other processes.
        raise InputError(f"processes_per_seed must be 1 with checkpointing, got {number}")
    if not can_add(device):
        raise InputError(
            f"processes_per_seed must be 1 on {device.type} with this build of torch, got {number}"
        )
    num_gpus, needed = torch.cuda.device_count(), number * (setup.parallel or 1)
    if device.type == "cuda" and needed > num_gpus:
        raise InputError(
            "processes_per_seed times parallel must be at most the number of GPUs, "
            f"{num_gpus}, got {needed}: each process takes one"
        )


def _with_exclusion(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with the digest of what it excludes, which is part of its identity.

    Args:
        folder: the run's.

    Raises:
        InputError: that cannot be read, would not stay where it is, or is not what was meant.
    """
    assert recipe.exclude is not None
    for path in tables_of(recipe.exclude):
        _check_outside("exclude", path, folder)
    digest = digest_of_tables(read_all_excluded(recipe.exclude))
    if recipe.exclude_sha256 not in (None, digest):
        raise InputError(
            f"exclude_sha256 must be that of the ids in exclude, {digest}, "
            f"got {recipe.exclude_sha256}"
        )
    return dataclasses.replace(recipe, exclude_sha256=digest)


def _check_outside(name: str, path: Path, folder: Path) -> None:
    if folder.absolute() in path.absolute().parents:
        raise InputError(
            f"{name} must not lie in {folder}, which is moved aside when a new run takes its "
            f"place: copy {path.name} out of it, or give another --run-name"
        )


def check_located_data(plan: Plan) -> str:
    """One line about the data that a dry run finds, checked as the run would; nothing is fetched.

    Raises:
        InputError: what is there cannot be trained on.
    """
    folder = locate_dataset(plan.setup)
    if folder is None:
        would = "drawn" if plan.setup.dataset == "demo" else f"{plan.setup.kaggle_handle} of Kaggle"
        return f"data: not here yet, would be {would}"
    dataset = read_dataset(folder)
    dataset = dataset.excluding(excluded_ids(plan.recipe, dataset))
    plan.check_data(dataset)
    return (
        f"data: {folder}, {len(dataset.ids)} labelled images, {len(dataset.classes)} classes, "
        f"{len(dataset.test_ids)} test images"
    )


def _check_model(recipe: Recipe, labels: tuple[str, ...]) -> int:
    """Build the model once, only to see that it can be built; returns the bytes of its weights.

    Raises:
        InputError: the model cannot be built, or cannot take images of the recipe's size.
    """
    try:
        # Without memory and arithmetic, unless there are weights to find, or there is little of
        # either: the first thing that is computed without them imports torch.compile, for seconds.
        is_cheap = recipe.model in MODELS
        device = torch.device("cpu" if is_cheap or recipe.pretrained else "meta")
        model = _build(recipe, labels, device)
        size = (recipe.image_size, recipe.image_size)
        with device, torch.no_grad():
            model(torch.zeros(min(2, recipe.batch_size), 3, *size))
        return sum(value.nbytes for value in model.state_dict().values())
    except NotImplementedError:
        # A few of torchvision's models cannot be built without memory (RegNet).
        return 0
    except ModelError as error:
        raise InputError(one_line(error, 500)) from error
    # torchvision's models refuse a size by any of these, asserts included.
    except (ValueError, RuntimeError, AssertionError) as error:
        raise InputError(
            f"{recipe.model} must accept image_size {recipe.image_size}, batch_size "
            f"{recipe.batch_size} and the other settings, found: {one_line(error)}"
        ) from error


def _build(recipe: Recipe, labels: tuple[str, ...], device: torch.device) -> ImageClassifier:
    with device:
        return build_for_training(recipe, labels)


def _setting_line(name: str, value: Any, changes: Mapping[str, object]) -> str:
    text = ",".join(map(str, value)) if isinstance(value, tuple) else value
    return f"  {name}: {text}" + ("  (changed)" if name in changes else "")
