"""Every setting of every command: its default, its help and its check, once.

Command-line options, logged parameters and the identity of a run come from these fields; recipes
with a name live in `pose.named_runs`.
"""

import dataclasses
import hashlib
import json
import math
import re
from typing import Any

from pose.errors import InputError, known
from pose.member_key import MemberKey

OPTIMIZERS = ("adam", "adamw", "muon")
SCHEDULES = ("constant", "cosine", "one_cycle")
CLASS_WEIGHTINGS = ("none", "balanced", "sqrt")
PRECISIONS = ("auto", "float32", "bfloat16")
MODEL_FORMATS = ("pickle", "pt2")
VOTINGS = ("soft", "hard", "rank", "weighted", "greedy", "stacking", "auto")
TTA_VIEWS = ("flip", "shift", "zoom")
EXIF = ("obey", "ignore")
FRAMINGS = ("resize", "crop", "fit")
ENGINES = ("local", "processes", "ray")
PREDICTING_ENGINES = ("local", "ray")
EXPORT_FORMATS = ("onnx", "pt2", "int8")
TABLE_SUFFIXES = (".csv", ".parquet")
DEVICE_HELP = "auto, cpu, cuda, cuda:<n> or mps"
SHUFFLES = ("all", "shards")
CACHES = ("decoded", "stream")
PREDICTING_THREADS_HELP = (
    "CPU threads, with ray those of each shard; the last digits depend on it; 0: the cores"
)
REGISTRY_HELP = "registered model that members are versions of; votes: <name>-ensemble"
# A budget below this would go into starting and saving, not into training.
MIN_SEED_SECONDS = 5
# What torch and the systems below it can count to.
MAX_COUNT = 2**31 - 1
# A process cannot have many more, and nobody has so many cores.
MAX_THREADS = 1024


# The default of `no_op`: the setting changes what is learned, whatever its value.
_ALWAYS = object()


def setting(
    default: Any,
    help: str,
    *,
    no_op: Any = _ALWAYS,
    is_input: bool = False,
    is_many: bool = False,
    words: str = "",
) -> Any:
    """A dataclass field with the help text of its command-line option.

    Args:
        no_op: the value at which the setting does nothing. A recipe's identity leaves it out then,
            so that a new setting does not separate yesterday's unfinished run from its command.
        is_input: it names a file or folder that is read, from where the user is.
        is_many: it may name several, joined by commas.
        words: what it may say in place of a path.
    """
    metadata = {
        "help": help,
        "no_op": no_op,
        "is_input": is_input,
        "is_many": is_many,
        "words": words.split(),
    }
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides what the seeds of a run learn from given data.

    Two runs with equal recipes on equal data are repetitions of each other.

    Raises:
        InputError: a value outside its range; the message names field, range and value.
    """

    model: str = setting(
        "pose_net", "architecture, also torchvision/<name> or timm/<name>; see --list-models"
    )
    pretrained: bool = setting(
        False, "start from torchvision's or timm's pretrained weights", no_op=False
    )
    weights: str | None = setting(
        None,
        "file of weights to start from, or models:/<name>/<version>",
        no_op=None,
        is_input=True,
    )
    weights_sha256: str | None = setting(
        None, "what that file's SHA-256 must be; default: whatever it is", no_op=None
    )
    freeze_epochs: int = setting(
        0, "epochs at the start that train the last layer alone; 0: none", no_op=0
    )
    layer_decay: float = setting(
        1.0, "factor of the learning rate from each layer to the one before it", no_op=1.0
    )
    dropout: float | None = setting(
        None, "probability of dropout, in models that have it; default: the model's own", no_op=None
    )
    drop_path: float | None = setting(
        None,
        "stochastic depth: probability of leaving out a block; default: the model's own",
        no_op=None,
    )
    checkpointing: bool = setting(
        False, "compute activations twice instead of keeping them, in timm's models", no_op=False
    )
    augmentation: str = setting("pose", "augmentation preset of the training images")
    seeds: tuple[int, ...] = setting((0, 1, 2), "seeds, joined by commas: one member each")
    image_size: int = setting(
        96, "height and width that the model sees, in pixels; 0: what it was made for"
    )
    framing: str = setting(
        "resize",
        "how a photograph becomes that square: resize stretches it, fit pads it, crop takes "
        "squares out of it at its own scale",
        no_op="resize",
    )
    crop_from: int = setting(
        256, "with framing crop: photographs larger than this are made smaller first", no_op=256
    )
    high_pass: bool = setting(
        False, "show the network the edges as a fourth channel, as simple_cnn_v2 does", no_op=False
    )
    exif: str = setting(
        "obey", "orientation that photographs ask for: obey or ignore", no_op="ignore"
    )
    batch_size: int = setting(32, "images at a time")
    accumulate: int = setting(1, "how many times batch_size an optimizer step learns from", no_op=1)
    num_epochs: int = setting(30, "largest number of epochs")
    budget: str | None = setting(
        None, "time for all seeds, such as 90s, 10m or 2h; replaces num_epochs", no_op=None
    )
    patience: int = setting(
        0, "epochs without a better val_f1 before stopping; 0: never stop early", no_op=0
    )
    shuffle: str = setting(
        "all",
        "order of an epoch's images: all at random; shards: one tar file after the other, mixed "
        "within 4,096 images, for disks that are slow at random reading",
        no_op="all",
    )
    optimizer: str = setting("muon", f"one of {', '.join(OPTIMIZERS)}")
    learning_rate: float = setting(2e-3, "highest learning rate")
    weight_decay: float = setting(
        0.05, "decoupled weight decay for adamw and muon, L2 for adam", no_op=0.0
    )
    schedule: str = setting("one_cycle", f"learning rate schedule: {', '.join(SCHEDULES)}")
    warmup_fraction: float = setting(
        0.2, "part of training that warms up (not with constant)", no_op=0.0
    )
    label_smoothing: float = setting(0.1, "label smoothing, in [0, 1)", no_op=0.0)
    ema_decay: float = setting(0.98, "decay per step of the weights' average; 0: none", no_op=0.0)
    clip_grad_norm: float = setting(0.0, "largest gradient norm; 0: no clipping", no_op=0.0)
    mixup_alpha: float = setting(0.0, "mixup, Beta(alpha, alpha); 0: none", no_op=0.0)
    cutmix_alpha: float = setting(0.0, "cutmix, Beta(alpha, alpha); 0: none", no_op=0.0)
    random_erasing: float = setting(
        0.0, "probability of erasing a rectangle of an image", no_op=0.0
    )
    distil: str | None = setting(
        None,
        "run or vote, by name or id, whose probabilities are learned in place of the labels",
        no_op=None,
    )
    distil_weight: float = setting(
        1.0, "part of the targets that distil gives; the labels are the rest", no_op=1.0
    )
    distil_sha256: str | None = setting(
        None,
        "what the SHA-256 of its members' weights must be; default: whatever it is",
        no_op=None,
    )
    exclude: str | None = setting(
        None,
        "CSV files with a column id, such as label_suspects.csv, joined by commas: images to train "
        "and validate without",
        no_op=None,
        is_input=True,
        is_many=True,
    )
    exclude_sha256: str | None = setting(
        None, "what the SHA-256 of its sorted ids must be; default: whatever it is", no_op=None
    )
    class_weighting: str = setting(
        "none", f"class weights in the loss: {', '.join(CLASS_WEIGHTINGS)}", no_op="none"
    )
    val_fraction: float = setting(0.2, "part of the labelled images used for validation")
    folds: int = setting(
        0, "members per seed, each validated on its own fold; 0: one, on val_fraction", no_op=0
    )
    keep_groups: bool = setting(
        True, "keep images of a group, or of equal bytes, on one side of the split", no_op=False
    )
    group_near_twins: bool = setting(
        False, "keep images that look alike on one side of the split too", no_op=False
    )
    split_seed: int | None = setting(
        0, "seed of the split, shared by all seeds; none: each its own"
    )

    def __post_init__(self) -> None:
        if not self.seeds:
            raise InputError("seeds must name at least one seed, got none")
        _check_seeds("seeds", self.seeds)
        if self.image_size != 0:
            _check("image_size", self.image_size, 16 <= self.image_size <= 2048, "in [16, 2048]")
        for name in ("batch_size", "accumulate", "num_epochs"):
            _check_count(name, getattr(self, name), at_least=1)
        # Together they are the rows of a step.
        _check_count("batch_size times accumulate", self.batch_size * self.accumulate, at_least=1)
        _check("folds", self.folds, self.folds == 0 or self.folds >= 2, "0 or at least 2")
        share = self.member_seconds()
        if share is not None:
            num_members = len(self.members(self.seeds))
            _check(
                "budget",
                self.budget,
                share >= MIN_SEED_SECONDS,
                f"at least {MIN_SEED_SECONDS} seconds for each of {num_members} "
                f"{'members' if self.folds else 'seeds'}",
            )
        _check_count("patience", self.patience)
        _check("val_fraction", self.val_fraction, 0 < self.val_fraction < 1, "in (0, 1)")
        _check("learning_rate", self.learning_rate, 0 < self.learning_rate < math.inf, "positive")
        # What it is multiplied with must fit into float32 too.
        _check("learning_rate", self.learning_rate, self.learning_rate <= 1e20, "at most 1e20")
        _check("weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "at least 0")
        _check("clip_grad_norm", self.clip_grad_norm, self.clip_grad_norm >= 0, "at least 0")
        for name in ("mixup_alpha", "cutmix_alpha"):
            value = getattr(self, name)
            _check(name, value, 0 <= value < math.inf, "at least 0")
        for name in ("label_smoothing", "ema_decay", "warmup_fraction"):
            _check(name, getattr(self, name), 0 <= getattr(self, name) < 1, "in [0, 1)")
        _check("random_erasing", self.random_erasing, 0 <= self.random_erasing <= 1, "in [0, 1]")
        _check_choice("exif", self.exif, EXIF)
        self._check_framing()
        self._check_start()
        _check_choice("shuffle", self.shuffle, SHUFFLES)
        _check_choice("optimizer", self.optimizer, OPTIMIZERS)
        _check_choice("schedule", self.schedule, SCHEDULES)
        _check_choice("class_weighting", self.class_weighting, CLASS_WEIGHTINGS)
        if self.group_near_twins and not self.keep_groups:
            raise InputError(
                "group_near_twins must go with keep_groups, got keep_groups=false: leave out one"
            )
        if self.split_seed is not None:
            _check("split_seed", self.split_seed, 0 <= self.split_seed < 2**32, "in [0, 2**32)")

    def _check_framing(self) -> None:
        _check_choice("framing", self.framing, FRAMINGS)
        if self.framing == "crop":
            _check(
                "crop_from",
                self.crop_from,
                self.image_size <= self.crop_from <= 4096,
                f"in [image_size, 4096], which is [{self.image_size}, 4096]",
            )
        elif self.crop_from != type(self).crop_from:
            raise InputError(
                f"crop_from must go with framing crop, got framing {self.framing}: leave it out"
            )

    def _check_start(self) -> None:
        if self.weights is not None and self.pretrained:
            raise InputError(
                "weights and pretrained must not both be given: both say where to start"
            )
        _check_count("freeze_epochs", self.freeze_epochs)
        _check("layer_decay", self.layer_decay, 0 < self.layer_decay <= 1, "in (0, 1]")
        for name in ("dropout", "drop_path"):
            value = getattr(self, name)
            _check(name, value, value is None or 0 <= value < 1, "in [0, 1)")
        if self.weights is None and self.weights_sha256 is not None:
            raise InputError("weights_sha256 must go with weights, got it alone")
        _check("distil_weight", self.distil_weight, 0 < self.distil_weight <= 1, "in (0, 1]")
        if self.distil is None and self.distil_weight != 1:
            raise InputError("distil_weight must go with distil, got it alone")
        if self.distil is None and self.distil_sha256 is not None:
            raise InputError("distil_sha256 must go with distil, got it alone")
        if self.exclude is None and self.exclude_sha256 is not None:
            raise InputError("exclude_sha256 must go with exclude, got it alone")

    def seeds_text(self) -> str:
        """The seeds as they are typed: `76,100,123`."""
        return ",".join(map(str, self.seeds))

    def members(self, seeds: tuple[int, ...]) -> tuple[MemberKey, ...]:
        """The members that these seeds promise: one each, or one per fold."""
        folds = range(1, self.folds + 1) if self.folds else (0,)
        return tuple(MemberKey(seed, fold) for seed in seeds for fold in folds)

    def budget_seconds(self) -> float:
        """The budget for all members in seconds.

        Raises:
            InputError: there is none, or it is not a number with a unit.
        """
        return parse_time("budget", self.budget or "")

    def member_seconds(self) -> float | None:
        """Each member's share of the budget in seconds; None without one."""
        if self.budget is None:
            return None
        return self.budget_seconds() / len(self.members(self.seeds))

    def identity(self) -> dict[str, Any]:
        """What two runs must share to be one: every setting that does something, except the seeds.

        A budget counts as each member's share of it.
        """
        settings = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.metadata["no_op"]
        }
        del settings["seeds"]
        # Where they lie does not matter, but what they are: `weights_sha256`, `exclude_sha256`.
        settings.pop("weights", None)
        settings.pop("exclude", None)
        settings.pop("distil", None)
        if self.budget is not None:
            settings["budget"] = self.member_seconds()
        if self.folds:
            del settings["val_fraction"]
        return settings

    def digest(self) -> str:
        """16 hexadecimal digits that two recipes share if and only if their identity is equal."""
        text = json.dumps(self.identity(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSetup:
    """Where the data is.

    Raises:
        InputError: a value outside its range.
    """

    dataset: str | None = setting(
        None,
        "data folder, or demo; default: ./dataset, else Kaggle's",
        is_input=True,
        words="demo",
    )
    kaggle_handle: str = setting(
        "zv3zdochka/ml-intensive-yandex-academy-autumn-2025", "Kaggle data set, owner/name"
    )
    num_workers: int = setting(0, "threads that decode images; 0: one per core")

    def __post_init__(self) -> None:
        _check_count("num_workers", self.num_workers, at_most=MAX_THREADS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComputeSetup(DataSetup):
    """Where the data is, and what computes on it.

    Raises:
        InputError: an unknown precision.
    """

    device: str = setting("auto", DEVICE_HELP)
    precision: str = setting("auto", f"arithmetic to compute in: {', '.join(PRECISIONS)}")
    cache_root: str | None = setting(None, "folder for decoded images; default: ~/.cache/pose")
    cache: str = setting(
        "decoded",
        "decoded: images are decoded once and kept; stream: again and again while they are "
        "needed, for more images than the disk has room for",
    )
    registry_name: str = setting("pose", REGISTRY_HELP)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_choice("precision", self.precision, PRECISIONS)
        _check_choice("cache", self.cache, CACHES)
        check_registry_name(self.registry_name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup(ComputeSetup):
    """Where a run is trained and what it leaves behind; none of it changes the recipe.

    Raises:
        InputError: an unknown model format, or settings that exclude each other.
    """

    output_root: str = setting("outputs", "folder for the members' folders <run_name>/seed_<seed>")
    run_name: str | None = setting(None, "name of the run; default: the named run, else the model")
    model_format: str = setting("pickle", f"format of models in MLflow: {', '.join(MODEL_FORMATS)}")
    engine: str = setting(
        "local",
        "where members are trained: local: one after another; processes: several at once; ray: on "
        "the cluster that RAY_ADDRESS names, else on one that is started here",
    )
    parallel: int = setting(
        0, "members that train at the same time; 0: one, with ray as many as there is room for"
    )
    threads: int = setting(
        0,
        "CPU threads per member, on which its weights depend; 0: the cores, shared by parallel, "
        "with ray one",
    )
    gpus: float | None = setting(
        None, "ray: GPUs per member, such as 0.25; default: one where training is on CUDA"
    )
    processes_per_seed: int = setting(
        1,
        "processes of this machine that train each member together, on parts of every batch; on "
        "CUDA each has a GPU of its own",
    )
    fresh: bool = setting(False, "begin anew where an unfinished run would be continued")
    add_seeds: tuple[int, ...] = setting(
        (), "seeds to add to the newest finished run of the same recipe and data"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_choice("model_format", self.model_format, MODEL_FORMATS)
        _check_seeds("add_seeds", self.add_seeds)
        _check_choice("engine", self.engine, ENGINES)
        _check_count("parallel", self.parallel, at_most=MAX_THREADS)
        _check_count("threads", self.threads, at_most=MAX_THREADS)
        if self.parallel > 1 and self.engine == "local":
            raise InputError(
                f"parallel must be 1 with engine=local, got {self.parallel}: add engine=processes"
            )
        self._check_gpus()
        self._check_processes()
        if self.fresh and self.add_seeds:
            raise InputError("fresh and add_seeds must not both be given: one begins a new run")

    def _check_processes(self) -> None:
        number = self.processes_per_seed
        _check_count("processes_per_seed", number, at_least=1, at_most=MAX_THREADS)
        if number == 1:
            return
        if self.engine == "ray":
            raise InputError(
                f"processes_per_seed must be 1 with engine=ray, got {number}: the processes of a "
                "member are those of one machine"
            )
        if self.device not in ("auto", "cpu", "cuda"):
            raise InputError(
                "device must be auto, cpu or cuda with processes_per_seed, got "
                f"{self.device!r}: each process takes its own"
            )

    def _check_gpus(self) -> None:
        if self.engine != "ray":
            if self.gpus is not None:
                raise InputError(f"gpus must go with engine=ray, got engine={self.engine}")
            return
        if self.device not in ("auto", "cpu", "cuda"):
            raise InputError(
                f"device must be auto, cpu or cuda with engine=ray, got {self.device!r}: Ray picks "
                "the one"
            )
        if self.gpus is None:
            return
        # Ray counts in ten-thousandths, and gives several GPUs whole.
        is_whole = float(self.gpus).is_integer() and 0 <= self.gpus <= MAX_COUNT
        is_share = is_whole or 1e-4 <= self.gpus <= 1
        _check("gpus", self.gpus, is_share, "0, a fraction of one, or a whole number")
        if self.gpus and self.device == "cpu":
            raise InputError(f"gpus must be 0 with device=cpu, got {self.gpus}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportSetup:
    """Which archive is imported, and what is known of it.

    Raises:
        InputError: no archive, or a value outside its range.
    """

    archive: str | None = setting(
        None,
        "folder with seed_<n>/pose_cnn.pth and training_history.csv, as the original left it",
        is_input=True,
    )
    run_name: str | None = setting(None, "name of the run; default: that of the folder")
    model: str | None = setting(
        None, "its architecture; default: simple_cnn or simple_cnn_v2, whichever fits"
    )
    classes: str | None = setting(
        None, "labels joined by commas, in the order of the outputs; default: those of dataset"
    )
    dataset: str | None = setting(
        None,
        "data folder that it was trained on; default: ./dataset, if there is one",
        is_input=True,
        words="demo",
    )
    image_size: int = setting(128, "height and width that the model sees, in pixels")
    output_root: str = setting("outputs", "folder for the members' folders <run_name>/seed_<seed>")
    registry_name: str = setting("pose", "registered model that members are versions of")

    def __post_init__(self) -> None:
        _check("archive", self.archive, bool(self.archive), "a folder with seed_<n> folders in it")
        _check("image_size", self.image_size, 16 <= self.image_size <= 2048, "in [16, 2048]")
        check_registry_name(self.registry_name)
        labels = self.labels()
        is_valid = self.classes is None or len(set(labels)) == len(labels) >= 2 and "" not in labels
        _check("classes", self.classes, is_valid, "two labels or more, each once")

    def labels(self) -> tuple[str, ...]:
        """The labels in `classes`; none where it is not given."""
        return tuple(part.strip() for part in self.classes.split(",")) if self.classes else ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepSetup:
    """What a sweep tries, and how long.

    Raises:
        InputError: a value outside its range.
    """

    space: str | None = setting(
        None, "settings and their values, as learning_rate:1e-3..1e-2:log,label_smoothing:0|0.1"
    )
    trials: int = setting(20, "largest number of trials")
    budget: str | None = setting(None, "time for the whole sweep, such as 90s, 10m or 2h")
    sampler_seed: int = setting(0, "seed of the choice of values")

    def __post_init__(self) -> None:
        if self.space is None:
            raise InputError(
                "space must be given: the settings to try and their values, such as "
                "learning_rate:1e-3..1e-2:log,label_smoothing:0|0.1"
            )
        _check_count("trials", self.trials, at_least=1)
        _check("sampler_seed", self.sampler_seed, 0 <= self.sampler_seed < 2**32, "in [0, 2**32)")
        self.seconds()

    def seconds(self) -> float | None:
        """The budget in seconds; None without one.

        Raises:
            InputError: it is not a number with a unit.
        """
        return None if self.budget is None else parse_time("budget", self.budget)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VoteSetup(ComputeSetup):
    """Who votes, how, and where the predictions go.

    Raises:
        InputError: an unknown voting, or settings that exclude each other.
    """

    run: str | None = setting(
        None, "run, or several joined by commas; default: the newest finished one"
    )
    voting: str = setting("soft", f"how members are combined: {', '.join(VOTINGS)}")
    thresholds: bool = setting(
        False, "shift the decision between classes to where macro F1 is highest"
    )
    tta: str | None = setting(
        None,
        f"look several times at each test image: {', '.join(TTA_VIEWS)}, joined by commas; auto: "
        "in the ways that help on held-out rows",
    )
    out_path: str = setting("predictions.csv", "file to write")
    probabilities: bool = setting(
        False, "add calibrated probabilities and the confidence to predictions.csv"
    )
    abstain: float | None = setting(
        None, "add a column `ask`: keep the surest predictions, of which this part is to be right"
    )
    parent: str | None = setting(
        None, "id of the run to take; default: the newest finished one of that name"
    )
    skip_bad_images: bool = setting(False, "leave out unreadable test images instead of refusing")
    allow_missing: bool = setting(
        False, "vote although members are missing, doubled, or trained on other data"
    )
    export: str | None = setting(
        None, f"log the ensemble in other formats as well: {', '.join(EXPORT_FORMATS)}"
    )
    engine: str = setting(
        "local",
        "where members predict the test images: local, or ray: on the CPUs of the cluster that "
        "RAY_ADDRESS names, else of one that is started here",
    )
    threads: int = setting(0, PREDICTING_THREADS_HELP)
    lock: str | None = setting(
        None,
        "ensemble.json, or the id of a vote's run: repeat that vote with its very members",
        is_input=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_choice("voting", self.voting, VOTINGS)
        _check_predicting_engine(self.engine, self.device)
        _check_count("threads", self.threads, at_most=MAX_THREADS)
        if self.run is not None and not self.runs():
            raise InputError(f"run must name at least one run, got {self.run!r}")
        if self.parent and len(self.runs()) > 1:
            raise InputError(f"parent must go with a single run, got {len(self.runs())} runs")
        if self.lock and (self.run or self.parent):
            raise InputError("lock must go without run and parent: it names its members itself")
        if self.lock and (
            self.thresholds or self.probabilities or self.tta or self.abstain is not None
        ):
            raise InputError(
                "lock must go without thresholds, tta, probabilities and abstain: it repeats a "
                "vote with the settings that it had"
            )
        self.exports()
        for view in self.views():
            _check_choice("tta", view, (*TTA_VIEWS, "auto"))
        if "auto" in self.views() and len(self.views()) > 1:
            raise InputError(f"tta must be auto or views, got both: {self.tta}")
        if self.abstain is not None:
            _check("abstain", self.abstain, 0 < self.abstain < 1, "in (0, 1)")

    def views(self) -> tuple[str, ...]:
        """The names in `tta`, each once; `auto` alone: they are to be chosen."""
        names = (name.strip() for name in (self.tta or "").split(","))
        return tuple(dict.fromkeys(name for name in names if name))

    def exports(self) -> tuple[str, ...]:
        """The formats in `export`, each once."""
        return export_names("export", self.export)

    def runs(self) -> tuple[str, ...]:
        """The names in `run`, each once; none: the newest finished run is meant."""
        names = (name.strip() for name in (self.run or "").split(","))
        return tuple(dict.fromkeys(name for name in names if name))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareSetup:
    """What is compared, and where the comparison goes.

    Raises:
        InputError: not two different names.
    """

    runs: str | None = setting(
        None, "two trainings or votes joined by a comma, by name (the newest of it) or run id"
    )
    dataset: str | None = setting(
        None,
        "data folder, for the images on the page; default: where they were trained",
        is_input=True,
        words="demo",
    )
    out_dir: str = setting("comparison", "folder for report.html, comparison.json and .csv")
    registry_name: str = setting("pose", REGISTRY_HELP)

    def __post_init__(self) -> None:
        check_registry_name(self.registry_name)
        if len(self.pair()) != 2 or len(set(self.pair())) != 2:
            raise InputError(
                "runs must be two different ones joined by a comma, such as ensemble_1,ensemble_2 "
                f"(python -m entrypoints.runs lists them), got {self.runs or 'none'}"
            )

    def pair(self) -> tuple[str, ...]:
        """The names in `runs`."""
        return tuple(name.strip() for name in (self.runs or "").split(",") if name.strip())


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSetup:
    """Which finished model is used, and what computes.

    Raises:
        InputError: no model.
    """

    model: str | None = setting(
        None,
        "registered model: models:/pose-ensemble/1, models:/pose@champion, or a folder",
        is_input=True,
    )
    device: str = setting("auto", DEVICE_HELP)

    def __post_init__(self) -> None:
        _check("model", self.model, bool(self.model), "a model such as models:/pose-ensemble/1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictSetup(ModelSetup):
    """What is predicted by a finished model, and where the table goes.

    Raises:
        InputError: no images, or a table of another kind.
    """

    images: str | None = setting(
        None,
        "folder, pattern in quotes ('photos/*.jpg'), or a CSV or Parquet table of paths",
        is_input=True,
    )
    out_path: str = setting("predicted.csv", "table to write, .csv or .parquet")
    skip_bad_images: bool = setting(False, "leave out unreadable images instead of refusing")
    engine: str = setting(
        "local",
        "where images are predicted: local, or ray: on the CPUs of the cluster that RAY_ADDRESS "
        "names, else of one that is started here",
    )
    threads: int = setting(0, PREDICTING_THREADS_HELP)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_predicting_engine(self.engine, self.device)
        _check_count("threads", self.threads, at_most=MAX_THREADS)
        expected = "a folder, a pattern or a table of paths"
        _check("images", self.images, bool(self.images), expected)
        suffix = "." + self.out_path.rpartition(".")[2].lower()
        _check("out_path", self.out_path, suffix in TABLE_SUFFIXES, "a .csv or .parquet file")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportSetup(ModelSetup):
    """Which model is exported, into which formats, and what it is checked with.

    Raises:
        InputError: an unknown format.
    """

    formats: str = setting(
        "onnx,pt2", f"formats joined by commas: {', '.join(EXPORT_FORMATS)} (ONNX, quantized)"
    )
    dataset: str | None = setting(
        None,
        "data folder, for the images of the checks; default: where it was trained",
        is_input=True,
        words="demo",
    )
    out_dir: str = setting("exported", "folder for the exported files and export.json")

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("formats", self.formats, bool(self.names()), "one format at least")

    def names(self) -> tuple[str, ...]:
        """The formats, each once."""
        return export_names("formats", self.formats)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeSetup(ModelSetup):
    """Where a page with a finished model is served.

    Raises:
        InputError: a value outside its range.
    """

    host: str = setting("127.0.0.1", "address to listen at; 0.0.0.0: everybody may ask")
    port: int = setting(8000, "port to listen at; 0: any that is free")

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("port", self.port, 0 <= self.port < 65536, "in [0, 65536)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoSetup:
    """How the demo data is drawn.

    Raises:
        InputError: a value outside its range.
    """

    out: str = setting("demo", "demo: folder to draw into")
    num_train: int = setting(3000, "demo: labelled images; 0: all that the test images leave")
    num_test: int = setting(600, "demo: test images")
    draw_seed: int = setting(0, "demo: seed of the drawings")

    def __post_init__(self) -> None:
        _check_count("num_train", self.num_train)
        _check_count("num_test", self.num_test)
        _check("draw_seed", self.draw_seed, self.draw_seed >= 0, "at least 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreSetup:
    """What is compared with the demo's truth."""

    predictions: str = setting("predictions.csv", "score: file to compare", is_input=True)


def typed(value: Any) -> str:
    """A setting's value as it is typed on the command line."""
    if isinstance(value, tuple | list):
        return ",".join(map(str, value))
    return json.dumps(value) if isinstance(value, bool | None) else str(value)


def whole_number(text: str) -> int:
    """Digits as everybody types them: Python would take `1_2` for 12, and other alphabets' digits.

    Raises:
        ValueError: it is anything else.
    """
    if not re.fullmatch(r"\s*[+-]?[0-9]{1,30}\s*", text):
        raise ValueError(text)
    return int(text)


def decimal_number(text: str) -> float:
    """A decimal number; the same characters mean the same as in a whole one.

    Raises:
        ValueError: it is anything else.
    """
    if "_" in text or not text.isascii():
        raise ValueError(text)
    return float(text)


def parse_time(name: str, text: str) -> float:
    """The seconds that `text` means: `90s`, `10m`, `2h`.

    Raises:
        InputError: it is not a number with a unit; the message calls it `name`.
    """
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smh])", text)
    if not found:
        raise InputError(f"{name} must be a time such as 90s, 10m or 2h, got {text!r}")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]


def export_names(name: str, text: str | None) -> tuple[str, ...]:
    """The export formats in a text, each once.

    Raises:
        InputError: an unknown one; the message calls the text `name`.
    """
    words = (word.strip() for word in (text or "").split(","))
    found = tuple(dict.fromkeys(word for word in words if word))
    for word in found:
        _check_choice(name, word, EXPORT_FORMATS)
    return found


def check_registry_name(name: str) -> None:
    """Refuse a name that MLflow forbids, or that a filter cannot quote.

    Raises:
        InputError: it is one.
    """
    is_valid = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}", name) is not None
    _check("registry_name", name, is_valid, "letters, digits, _, . and -, 200 at most")


def _check(name: str, value: Any, is_valid: bool, expected: str) -> None:
    if not is_valid:
        # As it is typed.
        shown = "none" if value is None else value
        raise InputError(f"{name} must be {expected}, got {shown}")


def _check_count(name: str, value: int, *, at_least: int = 0, at_most: int = MAX_COUNT) -> None:
    _check(name, value, value >= at_least, f"at least {at_least}")
    _check(name, value, value <= at_most, f"at most {at_most}")


def _check_seeds(name: str, seeds: tuple[int, ...]) -> None:
    if len(set(seeds)) != len(seeds):
        raise InputError(f"{name} must differ from each other, got {','.join(map(str, seeds))}")
    for seed in seeds:
        _check(name, seed, 0 <= seed < 2**32, "in [0, 2**32)")


def _check_predicting_engine(engine: str, device: str) -> None:
    _check_choice("engine", engine, PREDICTING_ENGINES)
    if engine == "ray" and device not in ("auto", "cpu"):
        raise InputError(f"device must be cpu with engine=ray, got {device!r}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{name} must be one of {known(choices)}, got {value!r}")
