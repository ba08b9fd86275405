"""Images per second of training `simple_cnn` at 128 px, batch 64, on one GPU.

The decoded images lie in device memory. Compared in one run: the training loop as it is; the model
compiled; the whole step (augmentation, forward, backward, Adam) as a CUDA graph, with and without
compilation; the same steps on a batch that is ready (compute only); several seeds at once, as
graphs on streams of their own or stacked into one network of grouped convolutions, checked against
seeds trained alone; and the original recipe with its decoding workers.

Needs torch and torchvision, no MLflow. Runs on a CPU too, without the graphs:

    python -m benchmarks.cuda
    python -m benchmarks.cuda --device cpu --quick
"""

import argparse
import copy
import dataclasses
import functools
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import original, ours, report
from pose.config import Recipe
from pose.data.folder import read_dataset
from pose.data.tensors import TrainingData
from pose.device import keep_freed_memory, pick_precision
from pose.training.augment import PRESETS, augment_batch, gather, sample_params
from pose.training.loop import train
from pose_models import ImageClassifier

NUM_CLASSES = 2
LABELS = tuple(map(str, range(NUM_CLASSES)))
GOAL_RATE = 30_000
# Trains for a number of steps; how many images that are, over all seeds, is the caller's to know.
Run = Callable[[int], None]


class DeviceStep:
    """One training step of one seed that asks nothing of the host, so that a graph can hold it.

    Args:
        is_compiled: `torch.compile` the network and the augmentation.
        is_augmented: False trains on one batch that is ready: compute only.
    """

    def __init__(
        self,
        data: TrainingData,
        recipe: Recipe,
        seed: int,
        *,
        is_compiled: bool = False,
        is_augmented: bool = True,
    ) -> None:
        device = data.labels.device
        self.data, self.recipe = data, recipe
        self.precision = pick_precision("auto", device)
        self.model = ours.new_state(recipe, LABELS, seed, device).model.train()
        self.optimizer = build_optimizer(self.model, recipe)
        self.generator = torch.Generator(device).manual_seed(seed)
        order = torch.randperm(len(data.train_rows), generator=torch.Generator().manual_seed(seed))
        num_batches = len(order) // recipe.batch_size
        self.batches = data.train_rows[order].to(device)[: num_batches * recipe.batch_size]
        self.batches = self.batches.view(num_batches, recipe.batch_size)
        self.next_batch = torch.zeros(1, dtype=torch.int64, device=device)
        self.forward = torch.compile(self.model) if is_compiled else self.model
        self.augment = torch.compile(augment_batch) if is_compiled else augment_batch
        self.ready = None if is_augmented else self.batch()
        self.loss = torch.zeros((), device=device)

    def batch(self) -> tuple[Tensor, Tensor]:
        """The next batch, augmented, as `pose.training.training_batch` makes it."""
        rows = self.batches.index_select(0, self.next_batch)[0]
        self.next_batch.add_(1).remainder_(len(self.batches))
        device = self.data.labels.device
        images, labels = gather(self.data.images, rows, device), self.data.labels[rows]
        preset = PRESETS[self.recipe.augmentation]
        params = sample_params(preset, labels, self.data.mirrors, self.generator)
        images = self.augment(images, params, self.recipe.image_size)
        return images, torch.where(params.is_flipped, self.data.mirrors[labels], labels)

    def __call__(self) -> None:
        """Train on the next batch."""
        images, labels = self.ready or self.batch()
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(images.device, self.precision):
            logits = self.forward(images)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        self.optimizer.step()
        self.loss.copy_(loss.detach())


class StackedCNN(nn.Module):
    """Several `simple_cnn` as one network of grouped convolutions, with their weights.

    What `torch.func.vmap` makes of a convolution with a weight per member, without its overhead.
    """

    def __init__(self, members: Sequence[ImageClassifier]) -> None:
        super().__init__()
        self.num_members = len(members)
        self.preprocess = copy.deepcopy(members[0].preprocess)
        layers: list[nn.Module] = []
        for blocks in zip(*(member.network.features for member in members), strict=True):
            layers += [*self._stack_block(blocks), nn.MaxPool2d(2), nn.ReLU(inplace=True)]
        self.features = nn.Sequential(*layers)
        heads = [member.network.classifier for member in members]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for layer in (0, 3):
            self.weights.append(torch.stack([head[layer].weight.detach().T for head in heads]))
            self.biases.append(torch.stack([head[layer].bias.detach()[None] for head in heads]))
        self.dropout = copy.deepcopy(heads[0][2])

    def _stack_block(self, blocks: Sequence[nn.Sequential]) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
        first, m = blocks[0][0], self.num_members
        conv = nn.Conv2d(
            m * first.in_channels, m * first.out_channels, 3, padding=1, groups=m,
            bias=first.bias is not None,
        )  # fmt: skip
        norm = nn.BatchNorm2d(m * first.out_channels)
        for position, stacked in ((0, conv), (1, norm)):
            states = [block[position].state_dict() for block in blocks]
            stacked.load_state_dict(
                {
                    key: value if value.ndim == 0 else torch.cat([state[key] for state in states])
                    for key, value in states[0].items()
                }
            )
        return conv, norm

    def forward(self, images: Tensor) -> Tensor:
        """`(M, N, 3, H, W)`, a batch per member, to logits `(M, N, num_classes)` float32."""
        m, n = images.shape[:2]
        channels = self.preprocess(images.flatten(0, 1)).view(m, n, 3, *images.shape[-2:])
        channels = channels.transpose(0, 1).flatten(1, 2)  # (N, M * 3, H, W)
        pooled = self.features(channels).mean(dim=(2, 3)).view(n, m, -1).transpose(0, 1)
        hidden = self.dropout(F.relu(torch.baddbmm(self.biases[0], pooled, self.weights[0])))
        return torch.baddbmm(self.biases[1], hidden, self.weights[1]).float()


class StackedStep:
    """One step of several seeds at once in a `StackedCNN`; each has its own order and images."""

    def __init__(self, members: Sequence[DeviceStep]) -> None:
        self.members = members
        device = members[0].data.labels.device
        self.model = StackedCNN([member.model for member in members])
        self.model = self.model.to(device, memory_format=torch.channels_last).train()
        self.optimizer = build_optimizer(self.model, members[0].recipe)
        self.losses = torch.zeros(len(members), device=device)

    @property
    def generators(self) -> list[torch.Generator]:
        """Of all members."""
        return [member.generator for member in self.members]

    def __call__(self) -> None:
        """Train each member on its next batch."""
        batches = [member.batch() for member in self.members]
        images = torch.stack([images for images, _ in batches])
        labels = torch.stack([labels for _, labels in batches])
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(images.device, self.members[0].precision):
            logits = self.model(images)
        losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none").mean(dim=1)
        losses.sum().backward()
        self.optimizer.step()
        self.losses.copy_(losses.detach())


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """Autocast without its cache of converted weights, which a graph would keep for ever."""
    enabled = precision == torch.bfloat16
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled, cache_enabled=False)


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Adam in one kernel; on CUDA with its step count on the device."""
    is_cuda = next(model.parameters()).is_cuda
    return torch.optim.Adam(
        model.parameters(), lr=recipe.learning_rate, fused=True, capturable=is_cuda
    )


def capture(
    step: Callable[[], None], generators: Sequence[torch.Generator]
) -> torch.cuda.CUDAGraph:
    """The step as a graph; it has run a few times then."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(5):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        step()
    return graph


def repeat(step: Callable[[], None]) -> Run:
    """Run `step` again and again."""

    def run(num_steps: int) -> None:
        for _ in range(num_steps):
            step()

    return run


def loop_as_it_is(data: TrainingData, recipe: Recipe) -> Run:
    """`pose.training.train` over as many rows as the steps need."""
    device = data.labels.device
    state = ours.new_state(recipe, LABELS, seed=0, device=device)

    def run(num_steps: int) -> None:
        rows = data.train_rows.repeat(-(-num_steps * recipe.batch_size // len(data.train_rows)))
        some = dataclasses.replace(data, train_rows=rows[: num_steps * recipe.batch_size])
        one_more = dataclasses.replace(recipe, num_epochs=state.num_epochs_done + 1, patience=0)
        train(state, some, one_more, precision=pick_precision("auto", device))

    return run


def bare_loop(data: TrainingData, recipe: Recipe) -> Run:
    """Steps on a batch that is ready, launched one operation after the other."""
    step = DeviceStep(data, recipe, 0, is_augmented=False)
    return repeat(step)


def eager(data: TrainingData, recipe: Recipe, **options) -> Run:
    """`DeviceStep`, launched one operation after the other."""
    return repeat(DeviceStep(data, recipe, 0, **options))


def graph(data: TrainingData, recipe: Recipe, **options) -> Run:
    """`DeviceStep` as a CUDA graph."""
    step = DeviceStep(data, recipe, 0, **options)
    return repeat(capture(step, [step.generator]).replay)


def on_streams(data: TrainingData, recipe: Recipe, num_seeds: int) -> Run:
    """A graph and a stream for each seed."""
    steps = [DeviceStep(data, recipe, seed) for seed in range(num_seeds)]
    graphs = [capture(step, [step.generator]) for step in steps]
    streams = [torch.cuda.Stream() for _ in graphs]

    def run(num_steps: int) -> None:
        for _ in range(num_steps):
            for stream, captured in zip(streams, graphs, strict=True):
                with torch.cuda.stream(stream):
                    captured.replay()

    return run


def stacked(data: TrainingData, recipe: Recipe, num_seeds: int) -> Run:
    """All seeds in one network; a graph where there is CUDA."""
    step = StackedStep([DeviceStep(data, recipe, seed) for seed in range(num_seeds)])
    if data.labels.is_cuda:
        return repeat(capture(step, step.generators).replay)
    return repeat(step)


def original_loop(folder: Path, device: torch.device, num_workers: int) -> Run:
    """The original recipe, its images decoded by workers."""
    dataset = read_dataset(folder)
    images = original.OriginalImages(
        dataset.files, dataset.labels, preset="ensemble_2", image_size=128, high_pass=False
    )
    batches = original.endless_batches(images, num_workers=num_workers)
    network = original.OriginalCNN(len(dataset.classes), high_pass=False).to(device)
    optimizer = original.build_optimizer(network)

    def run(num_steps: int) -> None:
        for batch_images, labels in itertools.islice(batches, num_steps):
            original.train_step(network, optimizer, batch_images, labels)

    return run


def resident_data(num_images: int, image_size: int, device: torch.device) -> TrainingData:
    """Random images of the cache's size in device memory; pixels make no difference to the time."""
    shape = (num_images, 3, image_size, image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    return TrainingData(
        images=images,
        labels=torch.randint(0, NUM_CLASSES, (num_images,), device=device),
        train_rows=torch.arange(num_images),
        val_rows=torch.arange(64),
        mirrors=torch.arange(NUM_CLASSES, device=device),
    )


def compare_with_alone(data: TrainingData, recipe: Recipe, num_seeds: int, num_steps: int) -> str:
    """How far the losses of seeds trained together are from those of seeds trained alone.

    Without dropout, whose masks come from the one generator that all share.
    """
    without_dropout = functools.partial(_device_step_without_dropout, data, recipe)
    together = StackedStep([without_dropout(seed) for seed in range(num_seeds)])
    alone = [without_dropout(seed) for seed in range(num_seeds)]
    again = [without_dropout(seed) for seed in range(num_seeds)]
    apart, noise = 0.0, 0.0
    for _ in range(num_steps):
        together()
        for seed in range(num_seeds):
            alone[seed]()
            again[seed]()
            apart = max(apart, abs(float(together.losses[seed] - alone[seed].loss)))
            noise = max(noise, abs(float(again[seed].loss - alone[seed].loss)))
    return (
        f"Stacked members without dropout, {num_seeds} seeds, {num_steps} steps: the loss differs "
        f"from that of the seed alone by at most {apart:.2g}; the same seed alone, twice: "
        f"{noise:.2g}."
    )


def _device_step_without_dropout(data: TrainingData, recipe: Recipe, seed: int) -> DeviceStep:
    step = DeviceStep(data, recipe, seed)
    for module in step.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return step


def measure(
    variants: dict[str, tuple[Callable[[], Run], int, int]],
    device: torch.device,
    num_turns: int,
    batch_size: int,
) -> tuple[dict[str, list[float]], list[str]]:
    """Images per second of each variant, in turn, and what could not be run and why.

    Args:
        variants: name to what makes its run, seeds at once, steps a turn.
    """
    runs, failures = {}, []
    for name, (make, num_seeds, num_steps) in variants.items():
        print(f"preparing {name}", flush=True)
        try:
            run = make()
            run(max(1, num_steps // 10))
        # Whatever a variant raises on unknown hardware, the others are still worth their numbers;
        # the report names it.
        except Exception as error:
            failures.append(f"{name} could not run: {' '.join(str(error).split())[:200]}")
            print(failures[-1], flush=True)
            continue
        runs[name] = (run, num_seeds, num_steps)
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(num_turns):
        for name, (run, num_seeds, num_steps) in runs.items():
            _synchronize(device)
            started = time.perf_counter()
            run(num_steps)
            _synchronize(device)
            seconds = time.perf_counter() - started
            rates[name].append(num_seeds * num_steps * batch_size / seconds)
    return rates, failures


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ours.add_dataset_option(parser)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--num-images", type=int, default=50_000, help="in device memory")
    parser.add_argument("--num-steps", type=int, default=400, help="steps a turn")
    parser.add_argument("--num-turns", type=int, default=5)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--seeds-at-once", type=int, nargs="*", default=[2, 4, 8])
    parser.add_argument("--num-workers", type=int, nargs="*", default=[2, 16])
    parser.add_argument("--original-steps", type=int, default=20, help="steps a turn")
    parser.add_argument("--quick", action="store_true", help="tiny: only to see that it works")
    report.add_options(parser, "cuda")
    args = parser.parse_args()
    if args.quick:
        args.num_images, args.num_steps, args.num_turns, args.image_size = 256, 2, 2, 32
        args.seeds_at_once, args.num_workers, args.original_steps = [2], [2], 1
    device = torch.device(args.device)
    is_cuda = device.type == "cuda"
    keep_freed_memory()
    if is_cuda:
        torch.backends.cudnn.benchmark = True
    recipe = ours.frozen_recipe("simple_cnn", image_size=args.image_size)
    data = resident_data(args.num_images, args.image_size, device)
    make = {
        "training loop as it is": loop_as_it_is,
        "step, eager": eager,
        "compute only, eager": functools.partial(eager, is_augmented=False),
    }
    if is_cuda:
        make |= {
            "step, compiled": functools.partial(eager, is_compiled=True),
            "step, CUDA graph": graph,
            "step, compiled, CUDA graph": functools.partial(graph, is_compiled=True),
            "compute only, CUDA graph": functools.partial(graph, is_augmented=False),
            "compute only, compiled, CUDA graph": functools.partial(
                graph, is_augmented=False, is_compiled=True
            ),
        }
    variants = {
        name: (functools.partial(function, data, recipe), 1, args.num_steps)
        for name, function in make.items()
    }
    for num_seeds in args.seeds_at_once:
        ways = {"on streams": on_streams, "stacked": stacked} if is_cuda else {"stacked": stacked}
        for name, function in ways.items():
            variants[f"{num_seeds} seeds {name}"] = (
                functools.partial(function, data, recipe, num_seeds),
                num_seeds,
                args.num_steps,
            )
    with ours.data_folder(args.dataset, 64 if args.quick else 3000) as folder:
        for num_workers in args.num_workers:
            variants[f"original, {num_workers} workers"] = (
                functools.partial(original_loop, folder, device, num_workers),
                1,
                args.original_steps,
            )
        rates, failures = measure(variants, device, args.num_turns, recipe.batch_size)
    notes = [*failures, compare_with_alone(data, recipe, 2, num_steps=args.num_steps // 20 + 2)]
    if not is_cuda:
        notes.insert(0, "**No GPU was at hand: this run shows only that the script works.**")
    if args.quick:
        notes.insert(0, f"--quick: images of {args.image_size} px; no rate here means anything.")
    write(args, device, rates, notes)


def write(
    args: argparse.Namespace,
    device: torch.device,
    rates: dict[str, list[float]],
    notes: Sequence[str],
) -> None:
    """The report."""
    singles = {name: rates[name] for name in rates if name.startswith(("training", "step"))}
    bare = {name: rates[name] for name in rates if name.startswith("compute only")}
    best = max(singles, key=lambda name: statistics.median(singles[name]))
    best_bare = max(bare, key=lambda name: statistics.median(bare[name]))
    share = [100 * ratio for ratio in report.ratios(rates[best], rates[best_bare])]
    baseline = next((rates[name] for name in rates if name.startswith("original")), rates[best])
    is_measured = device.type == "cuda" and not args.quick
    rows = [
        [name, report.spread(values), report.spread(report.ratios(values, baseline), 1)]
        for name, values in rates.items()
    ]
    report.write_report(
        args.report,
        title="Training on one GPU",
        module="benchmarks.cuda",
        repetitions=f"{args.num_turns} turns in alternation, {args.num_steps} steps of 64 images "
        f"a turn ({args.original_steps} of the original), images/s over all seeds; "
        "median (lowest-highest)",
        goals=[
            report.Goal(
                text=f"{GOAL_RATE:,} images/s training one simple_cnn (aimed at on an H100)",
                measured=f"{report.spread(singles[best])} ({best}), "
                f"{report.spread(share)} % of {best_bare}",
                is_reached=statistics.median(singles[best]) >= GOAL_RATE if is_measured else None,
            )
        ],
        tables=[report.Table(columns=("", "images/s", "x the first original"), rows=rows)],
        notes=notes,
        device=device,
    )


if __name__ == "__main__":
    main()
