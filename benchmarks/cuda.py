"""Images per second of training `simple_cnn` at 128 px, batch 64, on one GPU.

The decoded images lie in device memory. Compared in one run: the training loop as it is; its step,
`pose.training.step.Step`, launched operation by operation and as a CUDA graph, with and without a
compiled network; the same on a batch that is ready (compute only); several seeds at once, as graphs
on streams of their own or stacked into one network of grouped convolutions, checked against seeds
trained alone; and the original recipe with its decoding workers.

Needs torch and torchvision, no MLflow. Runs on a CPU too, without the graphs:

    python -m benchmarks.cuda
    python -m benchmarks.cuda --device cpu --quick
"""

import argparse
import dataclasses
import functools
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import original, ours, report
from benchmarks.stacked import StackedStep, compare_with_alone
from pose.config import Recipe
from pose.data.folder import read_dataset
from pose.data.tensors import TrainingData
from pose.device import keep_freed_memory, pick_precision
from pose.training.loop import train
from pose.training.step import Step

NUM_CLASSES = 2
LABELS = tuple(map(str, range(NUM_CLASSES)))
GOAL_RATE = 30_000
# Trains for a number of steps; how many images that are, over all seeds, is the caller's to know.
Run = Callable[[int], None]
# Name to what makes its run, seeds at once, steps per turn.
Variants = dict[str, tuple[Callable[..., Run], int, int]]


def stacked_batches(data: TrainingData, batch_size: int, num_seeds: int) -> Tensor:
    """`full_batches` of each seed, `(num_batches, M, batch_size)`."""
    return torch.stack(
        [ours.full_batches(data, batch_size, seed) for seed in range(num_seeds)], dim=1
    )


def capture(
    work: Callable[[Tensor], object], rows: Tensor, generators: Sequence[torch.Generator]
) -> Callable[[Tensor], None]:
    """`work` as a CUDA graph of batches of the shape of `rows`; by then it has run a few times."""
    rows = rows.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(5):
            work(rows)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        work(rows)

    def replay(other_rows: Tensor) -> None:
        rows.copy_(other_rows)
        graph.replay()

    return replay


def repeat(work: Callable[[Tensor], object], batches: Tensor) -> Run:
    """Run `work` on one batch after the other, from the first again after the last."""
    endless = itertools.cycle(batches)

    def run(num_steps: int) -> None:
        for rows in itertools.islice(endless, num_steps):
            work(rows)

    return run


def loop_as_it_is(data: TrainingData, recipe: Recipe) -> Run:
    """`pose.training.train` over as many rows as the steps need."""
    device = data.labels.device
    state = ours.new_state(recipe, LABELS, seed=0, device=device)

    def run(num_steps: int) -> None:
        rows = data.train_rows.repeat(-(-num_steps * recipe.batch_size // len(data.train_rows)))
        some = dataclasses.replace(data, train_rows=rows[: num_steps * recipe.batch_size])
        one_more = dataclasses.replace(recipe, num_epochs=state.num_epochs_done + 1, patience=0)
        train(Step(state, some, one_more, pick_precision("auto", device)))

    return run


def single(
    data: TrainingData,
    recipe: Recipe,
    *,
    is_graph: bool = False,
    is_augmented: bool = True,
    is_compiled: bool = False,
) -> Run:
    """The step of one seed.

    Args:
        is_graph: as a CUDA graph, else launched one operation after the other.
        is_augmented: False trains on one batch that is ready: compute only.
    """
    step = ours.new_step(data, recipe, LABELS)
    if is_compiled:
        step.state.model.compile()
    batches = ours.full_batches(data, recipe.batch_size)
    work = step
    if not is_augmented:
        images, _, targets = step.batch(batches[0])

        def work(rows: Tensor) -> object:
            return step.update(images, targets)

    if is_graph:
        work = capture(work, batches[0], [step.state.augment_generator])
    return repeat(work, batches)


def on_streams(data: TrainingData, recipe: Recipe, num_seeds: int) -> Run:
    """A graph and a stream for each seed."""
    steps = [ours.new_step(data, recipe, LABELS, seed=seed) for seed in range(num_seeds)]
    batches = stacked_batches(data, recipe.batch_size, num_seeds)
    graphs = [capture(step, batches[0, 0], [step.state.augment_generator]) for step in steps]
    streams = [torch.cuda.Stream() for _ in graphs]

    def work(rows: Tensor) -> None:
        for stream, replay, own in zip(streams, graphs, rows, strict=True):
            with torch.cuda.stream(stream):
                replay(own)

    return repeat(work, batches)


def stacked(data: TrainingData, recipe: Recipe, num_seeds: int) -> Run:
    """All seeds in one network; a graph where there is CUDA."""
    step = StackedStep(
        [ours.new_step(data, recipe, LABELS, seed=seed) for seed in range(num_seeds)]
    )
    batches = stacked_batches(data, recipe.batch_size, num_seeds)
    if data.labels.is_cuda:
        return repeat(capture(step, batches[0], step.generators), batches)
    return repeat(step, batches)


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


def our_variants(data: TrainingData, recipe: Recipe, args: argparse.Namespace) -> Variants:
    """Graphs, streams and compilation where there is CUDA."""
    is_cuda = data.labels.is_cuda
    found: Variants = {"training loop as it is": (loop_as_it_is, 1, args.num_steps)}
    for what, is_augmented in (("step", True), ("compute only", False)):
        for is_compiled, is_graph in itertools.product((False, True), repeat=2):
            if is_cuda or not (is_compiled or is_graph):
                name = f"{what}, {'CUDA graph' if is_graph else 'eager'}"
                name += ", network compiled" * is_compiled
                make = functools.partial(
                    single, is_graph=is_graph, is_augmented=is_augmented, is_compiled=is_compiled
                )
                found[name] = (make, 1, args.num_steps)
    ways = {"on streams": on_streams, "stacked": stacked} if is_cuda else {"stacked": stacked}
    for num_seeds in args.seeds_at_once:
        for way, function in ways.items():
            make = functools.partial(function, num_seeds=num_seeds)
            found[f"{num_seeds} seeds {way}"] = (make, num_seeds, args.num_steps)
    return {
        name: (functools.partial(make, data, recipe), *numbers)
        for name, (make, *numbers) in found.items()
    }


def original_variants(folder: Path, device: torch.device, args: argparse.Namespace) -> Variants:
    """The original recipe, by the number of its workers."""
    return {
        f"original, {num_workers} workers": (
            functools.partial(original_loop, folder, device, num_workers),
            1,
            args.original_steps,
        )
        for num_workers in args.num_workers
    }


def measure(
    variants: Variants,
    device: torch.device,
    num_turns: int,
    batch_size: int,
) -> tuple[dict[str, list[float]], list[str]]:
    """Images per second of each variant, in turn, and what could not be run and why."""
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
    parser.add_argument("--num-images", type=int, default=50_000, help="images in device memory")
    parser.add_argument("--num-steps", type=int, default=400, help="steps per turn")
    parser.add_argument("--num-turns", type=int, default=5)
    parser.add_argument("--image-size", type=int, default=128, help="in pixels")
    parser.add_argument("--seeds-at-once", type=int, nargs="*", default=[2, 4, 8])
    parser.add_argument("--num-workers", type=int, nargs="*", default=[2, 16])
    parser.add_argument("--original-steps", type=int, default=20, help="steps per turn")
    parser.add_argument("--quick", action="store_true", help="tiny: only to see that it works")
    report.add_options(parser, "cuda")
    args = parser.parse_args()
    if args.quick:
        args.num_images, args.num_steps, args.num_turns, args.image_size = 256, 2, 2, 32
        args.seeds_at_once, args.num_workers, args.original_steps = [2], [2], 1
    device = torch.device(args.device)
    keep_freed_memory()
    torch.backends.cudnn.benchmark = True
    recipe = ours.frozen_recipe("simple_cnn", image_size=args.image_size)
    data = ours.random_data(args.num_images, args.image_size, NUM_CLASSES, device)
    with ours.data_folder(args.dataset, 64 if args.quick else 3000) as folder:
        variants = our_variants(data, recipe, args) | original_variants(folder, device, args)
        rates, notes = measure(variants, device, args.num_turns, recipe.batch_size)
    steps = (
        [ours.new_step(data, recipe, LABELS, seed=seed) for seed in range(2)] for _ in range(3)
    )
    batches = stacked_batches(data, recipe.batch_size, 2)[: args.num_steps // 20 + 2]
    notes.append(compare_with_alone(*steps, batches))
    if device.type != "cuda":
        notes.insert(
            0,
            "**No GPU was at hand: this run shows only that the script works. Its CUDA graphs and "
            "streams have not run.**",
        )
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
        f"per turn ({args.original_steps} of the original), images/s over all seeds; "
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
