"""The optimizer step of `simple_cnn`: what each choice gives, and what is left to the machine.

Steps on a batch that lies in memory, 128 px, batch 64. Each variant is a process of its own, all in
turn; the last but one is the step as `pose` takes it. The ceiling is a large bfloat16 matrix
product.

    python -m benchmarks.step
"""

import argparse
import functools
import statistics
import time
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks import original, ours, report
from benchmarks.sides import measure_in_turn
from pose.device import keep_freed_memory

CPU = torch.device("cpu")
BATCH_SIZE, IMAGE_SIZE, NUM_CLASSES = 64, 128, 20
MATRIX_SIZE = 4096
AS_IT_IS = "+ oneDNN's layout (as it is)"
# Operations of the profile by what they belong to; the first that fits.
KINDS = {
    "convolution, forward": ("mkldnn_convolution", "convolution_forward"),
    "convolution, backward": ("convolution_backward",),
    "batch norm": ("batch_norm",),
    "max-pooling": ("max_pool2d",),
    "optimizer": ("optimizer", "_fused_adam"),
}
# Of the network's convolutions: input channels, output channels, side of the map.
CONVOLUTIONS = ((3, 32, 128), (32, 64, 64), (64, 128, 32), (128, 256, 16))


def batch() -> tuple[Tensor, Tensor]:
    """Images `(64, 3, 128, 128)` in 0..1, and labels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(BATCH_SIZE, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
    return images, torch.randint(NUM_CLASSES, (BATCH_SIZE,), generator=generator)


def original_side(channels_last: bool, num_steps: int) -> Iterator[float]:
    """Seconds per step of the original's network in float32, ReLU before pooling."""
    images, labels = batch()
    network = original.OriginalCNN(NUM_CLASSES, high_pass=False).train()
    if channels_last:
        network = network.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    optimizer = original.build_optimizer(network)
    yield original.train_step(network, optimizer, images, labels)
    while True:
        started = time.perf_counter()
        for _ in range(num_steps):
            original.train_step(network, optimizer, images, labels)
        yield (time.perf_counter() - started) / num_steps


def our_step(onednn: bool, precision: str = "auto"):
    """A function that takes one of our steps; without oneDNN's layout if asked."""
    from pose_models import simple_cnn

    if not onednn:
        simple_cnn.to_onednn = lambda x: x
    data = ours.random_data(BATCH_SIZE, IMAGE_SIZE, NUM_CLASSES, CPU)
    recipe = ours.frozen_recipe("simple_cnn")
    names = tuple(str(label) for label in range(NUM_CLASSES))
    step = ours.new_step(data, recipe, names, precision=precision)
    images, _, targets = step.batch(data.train_rows)
    return lambda: step.update(images, targets)


def our_side(
    keep_memory: bool, onednn: bool, num_steps: int, precision: str = "auto"
) -> Iterator[float]:
    """Seconds per step of ours."""
    if keep_memory:
        keep_freed_memory()
    step = our_step(onednn, precision)
    yield [step() for _ in range(3)]
    while True:
        started = time.perf_counter()
        for _ in range(num_steps):
            step()
        yield (time.perf_counter() - started) / num_steps


def ceiling_side() -> Iterator[float]:
    """GFLOP/s of a bfloat16 matrix product."""
    a, b = (torch.randn(MATRIX_SIZE, MATRIX_SIZE).bfloat16() for _ in range(2))
    yield a @ b
    while True:
        started = time.perf_counter()
        for _ in range(5):
            a @ b
        yield 5 * 2 * MATRIX_SIZE**3 / (time.perf_counter() - started) / 1e9


def profile_side(num_steps: int) -> Iterator[dict[str, float]]:
    """Milliseconds per step by kind of operation."""
    keep_freed_memory()
    step = our_step(onednn=True)
    yield [step() for _ in range(3)]
    while True:
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            for _ in range(num_steps):
                step()
        times = dict.fromkeys([*KINDS, "everything else"], 0.0)
        for event in profiled.key_averages():
            name = event.key.lower()
            kind = next((k for k, parts in KINDS.items() if any(p in name for p in parts)), None)
            times[kind or "everything else"] += event.self_cpu_time_total / 1e3 / num_steps
        yield times


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ours.add_dataset_option(parser)  # not needed here; all benchmarks take it
    parser.add_argument("--num-turns", type=int, default=5)
    parser.add_argument("--num-steps", type=int, default=5, help="in a turn")
    report.add_options(parser, "step")
    args = parser.parse_args()
    steps = args.num_steps
    sides = {
        "the original: NCHW float32": functools.partial(original_side, False, steps),
        "+ channels last": functools.partial(original_side, True, steps),
        "+ bfloat16, pooling before ReLU, fused Adam": functools.partial(
            our_side, False, False, steps
        ),
        "+ freed memory is kept": functools.partial(our_side, True, False, steps),
        AS_IT_IS: functools.partial(our_side, True, True, steps),
        "the same in float32": functools.partial(our_side, True, True, steps, "float32"),
    }
    measured = measure_in_turn(
        {**sides, "ceiling": ceiling_side, "profile": functools.partial(profile_side, steps)},
        args.num_turns,
    )
    base = measured[next(iter(sides))]
    best = measured[AS_IT_IS]
    rows = [
        [
            name,
            report.spread([1e3 * value for value in measured[name]]),
            report.spread([BATCH_SIZE / value for value in measured[name]]),
            f"{report.spread(report.ratios(base, measured[name]), 1)}x",
        ]
        for name in sides
    ]
    ceiling = statistics.median(measured["ceiling"])
    # Two operations per multiplication; backward costs twice forward, but for the images' gradient.
    forward = [2 * 9 * a * b * side**2 * BATCH_SIZE / 1e9 for a, b, side in CONVOLUTIONS]
    work = {
        "convolution, forward": sum(forward),
        "convolution, backward": 2 * sum(forward) - forward[0],
    }
    kinds = {kind: [turn[kind] for turn in measured["profile"]] for kind in measured["profile"][0]}
    total = statistics.median(sum(turn.values()) for turn in measured["profile"])
    kind_rows = []
    for kind, values in kinds.items():
        rate = 1e3 * work[kind] / statistics.median(values) if kind in work else None
        kind_rows.append(
            [
                kind,
                report.spread(values, 1),
                f"{100 * statistics.median(values) / total:.0f} %",
                f"{rate:.0f}, {100 * rate / ceiling:.0f} % of the ceiling" if rate else "",
            ]
        )
    convolutions = statistics.median(
        sum(turn[kind] for kind in work) for turn in measured["profile"]
    )
    bound = (
        f"The convolutions take {convolutions:.0f} ms at the rate above: were everything else "
        f"free, a step would give {1e3 * BATCH_SIZE / convolutions:.0f} images/s, "
        f"{1e3 * statistics.median(base) / convolutions:.1f}x the original's step."
    )
    whole = sum(work.values()) / statistics.median(best)
    unnamed = 100 * statistics.median(kinds["everything else"]) / total
    report.write_report(
        args.report,
        title="The optimizer step of `simple_cnn`",
        module="benchmarks.step",
        repetitions=f"{args.num_turns} turns of {steps} steps, the waiting sides stopped; "
        "median (lowest-highest)",
        goals=[
            report.Goal(
                text="what is left between the step and the machine is known: at least 90 % of the "
                "step's time has a name below",
                measured=f"{100 - unnamed:.0f} %; the step reaches {whole:.0f} of {ceiling:.0f} "
                f"GFLOP/s, {100 * whole / ceiling:.0f} %",
                is_reached=unnamed <= 10,
            )
        ],
        tables=[
            report.Table(
                columns=("the step", "ms", "images/s", "against the original's"),
                rows=rows,
                title="What each choice gives",
            ),
            report.Table(
                columns=("", "ms per step", "share", "GFLOP/s"),
                rows=kind_rows,
                title="Where the time goes now",
            ),
        ],
        notes=(bound, *NOTES),
    )


NOTES = (
    "Tried before oneDNN's layout, on the same machine, as ratio of images/s: `torch.compile` 0.70 "
    "(it also needs a C++ compiler); the first layer's 3 channels padded to 4 / 8 / 16: 0.99 / "
    "0.95 / 0.91; one thread 0.56; foreach or for-loop Adam, ReLU in place, bfloat16 weights, no "
    "convolution bias, no autocast cache: within noise.",
    "OMP_WAIT_POLICY, OMP_PROC_BIND, huge pages by `madvise` or glibc: no gain beyond noise.",
    "Batch norm and pooling as one function of PyTorch operations: slower, since finding the "
    "winner of each window costs 35 ms.",
    "Batch norm, pooling and ReLU as kernels of our own, compiled by Numba on PyTorch's threads: "
    "19 ms instead of 38, the same loss to 5 digits. But they cannot read oneDNN's layout, and the "
    "convolutions take 17 ms more in channels last: a step of 139 ms instead of 142, not worth a "
    "compiler of 60 MB among the requirements.",
    "oneDNN's layout gains where batch norm and pooling are a large part. Not on `pose_net`, whose "
    "step is convolutions. In evaluation it is for `for_inference` alone: hooks and exporters want "
    "usual tensors.",
)


if __name__ == "__main__":
    main()
