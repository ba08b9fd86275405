"""Files that are not what was written: flipped bits, cut, gone, of somebody else."""

import os
import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks.faults.lab import NUM_EPOCHS, Attempt, Lab
from benchmarks.faults.outcome import Outcome, Try
from pose.errors import InputError
from pose.seeds import folder as seed_folder

BITS = "one flipped bit in a checkpoint"
FINISHED = "a finished member's file damaged or gone"


def flipped_bits(lab: Lab, count: int, seed: int = 3) -> Iterator[Try]:
    """Single bits of a checkpoint, all over it; each must be noticed when it is read."""
    made = Attempt(lab, "bits")
    path = made.run_folder / "seed_1" / seed_folder.CHECKPOINT
    rng = random.Random(seed)

    def flip_at(part: float) -> Outcome:
        if not path.exists():
            made.do(made.training(seeds="1", num_epochs=1))
        data = bytearray(path.read_bytes())
        place = int(part * len(data) * 8)
        data[place // 8] ^= 1 << place % 8
        damaged = path.with_name("damaged.pth")
        damaged.write_bytes(data)
        try:
            seed_folder.read_checkpoint(damaged)
        except InputError as error:
            return Outcome(said=str(error).replace(str(damaged), seed_folder.CHECKPOINT))
        return Outcome(problems=("read as if it were whole",))

    for number in range(count):
        yield Try(fault=BITS, name=f"{number}", run=partial(flip_at, rng.random()))


def cut(path: Path) -> None:
    """Cut a file to its half."""
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    """Flip bits in its middle."""
    data = bytearray(path.read_bytes())
    for place in range(len(data) // 2, len(data) // 2 + 64):
        data[place] ^= 0x55
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], None]] = {"cut": cut, "flipped": flip, "gone": os.unlink}


def finished_members(lab: Lab) -> Iterator[Try]:
    """A file of the first seed, which is finished, while the second is at work."""
    for name in (seed_folder.WEIGHTS, seed_folder.CONFIG):
        for how in DAMAGE:
            yield Try(
                fault=FINISHED, name=f"{name} {how}", run=partial(_damage_file, lab, name, how)
            )
    yield Try(fault=FINISHED, name="the whole folder gone", run=partial(_lose_folder, lab))


def _damage_file(lab: Lab, name: str, how: str) -> Outcome:
    attempt = Attempt(lab, f"finished_{how}_{name}")
    return _damage_finished(attempt, lambda folder: DAMAGE[how](folder / name))


def _lose_folder(lab: Lab) -> Outcome:
    return _damage_finished(Attempt(lab, "finished_gone"), shutil.rmtree)


def _damage_finished(attempt: Attempt, damage: Callable[[Path], None]) -> Outcome:
    process = attempt.launch(attempt.training())
    while process.poll() is None and len(attempt.history("night", 2)) < NUM_EPOCHS - 1:
        pass
    process.send_signal(9)
    process.wait()
    damage(attempt.run_folder / "seed_1")
    problems = attempt.judge(attempt.training())
    text = attempt.text("again_0.txt")
    warnings = [line for line in text.splitlines() if line.startswith("warning:")]
    if not warnings:
        problems = (*problems, "nothing said")
    if not problems:
        attempt.remove()
    said = (warnings or [""])[0].replace(f"{attempt.folder}/", "")
    return Outcome(said=said, problems=problems)
