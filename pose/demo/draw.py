"""Draws the demo data folder: figures from real skeletons, with their labels.

Owns the choice of skeletons and the files of a demo data folder. How a figure looks belongs to
figure.py; where the demo lies, and how a data folder is read, to others. The skeletons come from
skeletons.npz (see NOTICE and scripts/make_demo_skeletons.py).
"""

import csv
import json
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pose.demo.figure import IMAGE_SIZE, draw_figure

__all__ = ["draw_figure", "write_demo"]

JPEG_QUALITY = 88
# Raise it whenever the drawings change, so that a folder of the old ones is not taken for the new.
DRAWING_VERSION = 2
# Test ids start here: they never equal a train id, however many train images there are.
FIRST_TEST_ID = 100_000
MARKER = "demo.json"

# What a horizontal flip makes of a class; without an entry the mirror image is no class of this
# set, so it is never flipped. Found by looking at flipped drawings and by a classifier of
# keypoints: README.md in this folder.
SYMMETRIC = (
    "Plank",
    "PushUp_Low",
    "Seated",
    "Squat",
    "Stand",
    "T",
    "Traffic_AllStop",
    "Yoga_UpwardSalute",
)
SWAPPED = (
    ("Stand_LeftArmRaised", "Stand_RightArmRaised"),
    ("Traffic_LeftTurn", "Traffic_RightTurn"),
    ("Yoga_Tree_left", "Yoga_Tree_right"),
    ("Yoga_Warrior2_left", "Yoga_Warrior2_right"),
)

_POOL_MIN_IMAGES = 200  # below, starting workers costs more than they save
_STALE_SECONDS = 3600  # drawing takes a minute: what is unfinished after an hour was killed


@lru_cache(maxsize=1)
def load_skeletons() -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Read the skeletons that come with this package.

    Returns:
        keypoints: (10681, 25, 2) float16, x to the right and y up, (0, 0) where a keypoint was not
            found.
        labels: (10681,) uint8, index into the names.
        names: 20 names of classes, sorted.
    """
    with np.load(Path(__file__).with_name("skeletons.npz")) as arrays:
        return arrays["keypoints"], arrays["labels"], tuple(arrays["names"].tolist())


def mirror_names() -> dict[str, str]:
    """Name of the class that a horizontal flip makes of each class; absent where there is none."""
    mirrors = {name: name for name in SYMMETRIC}
    for first, second in SWAPPED:
        mirrors[first], mirrors[second] = second, first
    return mirrors


def write_demo(
    folder: str | os.PathLike[str],
    num_train: int | None,
    num_test: int,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    num_workers: int | None = None,
) -> Path:
    """Draw the demo data into `folder`; do nothing if it is already there.

    The folder gets train_solution.csv (id,label), train_images/<id>.jpg, test_images/<id>.jpg,
    classes.csv (label,name,mirror), test_solution.csv (id,label: the truth about the test images),
    README.txt and the marker demo.json. Labels are 0 to 19. Classes are as equal in number as the
    skeletons allow, and no skeleton is in both train and test. The same arguments give the same
    bytes (with the same version of Pillow), whatever the number of workers. Everything is drawn
    into a hidden folder beside `folder` and renamed at the end.

    Args:
        folder: where to write; may exist if it is empty or holds this very demo data.
        num_train: train images; None takes all skeletons that the test images leave.
        num_test: test images, 0 for none.
        seed: 0 or above; another seed takes other skeletons and draws them differently.
        progress: called as progress(images_done, images_in_all) from this process.
        num_workers: processes to draw in, by default one per CPU.

    Returns:
        The folder.

    Raises:
        ValueError: a number out of range, or a folder that holds something else.
        OSError: the folder cannot be written.
    """
    folder = Path(folder)
    for name, number in (("num_train", num_train), ("num_test", num_test), ("seed", seed)):
        if number is not None and number < 0:
            raise ValueError(f"{name} must be 0 or above, got {number}")
    if num_workers is not None and num_workers < 1:
        raise ValueError(f"num_workers must be 1 or above, got {num_workers}")
    train, test = choose_skeletons(num_train, num_test, seed)
    marker = {
        "data": "pose demo",
        "drawing_version": DRAWING_VERSION,
        "num_train": len(train),
        "num_test": len(test),
        "seed": seed,
        "image_size": IMAGE_SIZE,
    }
    if _holds_demo(folder, marker):
        return folder

    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(folder)
    draft = Path(tempfile.mkdtemp(prefix=_draft_prefix(folder), dir=folder.parent))
    try:
        _draw_images(draft, train, test, seed, progress, num_workers)
        _write_tables(draft, train, test)
        (draft / "README.txt").write_text(_readme(len(train), len(test), seed), encoding="utf-8")
        (draft / MARKER).write_text(json.dumps(marker, indent=1) + "\n", encoding="utf-8")
        draft.chmod(0o777 & ~_umask())  # mkdtemp makes it private
        if not _holds_demo(folder, marker):  # another process may have been faster
            if folder.exists():
                folder.rmdir()
            draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def choose_skeletons(
    num_train: int | None, num_test: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw disjoint, class-balanced sets of skeletons.

    Test skeletons are taken from one end of each class's shuffled list and train skeletons from the
    other, so neither set depends on the size of the other one (as long as both fit).

    Returns:
        train, test: (num_train,) and (num_test,) int64, indices into `load_skeletons()`, in the
        order of ids.

    Raises:
        ValueError: more images asked for than there are skeletons.
    """
    _, labels, names = load_skeletons()
    if num_train is None:
        num_train = max(0, len(labels) - num_test)
    if num_train + num_test > len(labels):
        raise ValueError(
            f"num_train + num_test must be at most {len(labels)} (the skeletons that there are), "
            f"got {num_train} + {num_test}"
        )
    rng = np.random.default_rng([seed, 2])
    shuffled = [rng.permutation(np.flatnonzero(labels == k)) for k in range(len(names))]
    test_counts = _share_out(num_test, [len(s) for s in shuffled])
    left = [len(s) - n for s, n in zip(shuffled, test_counts, strict=True)]
    train_counts = _share_out(num_train, left)
    train = [s[len(s) - n :] for s, n in zip(shuffled, train_counts, strict=True)]
    test = [s[:n] for s, n in zip(shuffled, test_counts, strict=True)]
    train_ids, test_ids = (
        np.random.default_rng([seed, 3, split]).permutation(np.concatenate(chosen))
        for split, chosen in enumerate((train, test))
    )
    return train_ids, test_ids


def _share_out(total: int, available: list[int]) -> list[int]:
    """Share `total` among the classes as equally as what each class has allows."""
    counts = [0] * len(available)
    while total:
        open_classes = [k for k, n in enumerate(available) if counts[k] < n]
        share = max(1, total // len(open_classes))
        for k in open_classes[:total]:
            more = min(share, available[k] - counts[k], total)
            counts[k] += more
            total -= more
    return counts


def _draw_images(
    draft: Path,
    train: np.ndarray,
    test: np.ndarray,
    seed: int,
    progress: Callable[[int, int], None] | None,
    num_workers: int | None,
) -> None:
    for name in ("train_images", "test_images"):
        (draft / name).mkdir()
    tasks = [
        (draft / name / f"{first + index}.jpg", int(skeleton), (seed, split, index))
        for split, (name, first, chosen) in enumerate(
            (("train_images", 0, train), ("test_images", FIRST_TEST_ID, test))
        )
        for index, skeleton in enumerate(chosen)
    ]
    num_workers = num_workers or os.cpu_count() or 1
    if num_workers == 1 or len(tasks) < _POOL_MIN_IMAGES:
        for done, task in enumerate(tasks, start=1):
            _draw_image(task)
            if progress:
                progress(done, len(tasks))
        return
    # fork where there is one: spawn would import the caller's program, torch and all, per worker.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    with ProcessPoolExecutor(
        num_workers,
        mp_context=multiprocessing.get_context(method),
        initializer=_start_worker,
        initargs=(os.getpid(),),
    ) as pool:
        try:
            for done, _ in enumerate(pool.map(_draw_image, tasks, chunksize=16), start=1):
                if progress:
                    progress(done, len(tasks))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _draw_image(task: tuple[Path, int, tuple[int, int, int]]) -> None:
    path, skeleton, key = task
    keypoints, _, _ = load_skeletons()
    # A generator per image, keyed by what the image is: the order of drawing does not matter.
    image = draw_figure(keypoints[skeleton], np.random.default_rng(key))
    image.save(path, quality=JPEG_QUALITY)


def _start_worker(parent: int) -> None:
    """Leave the caller's signal handlers behind, and do not outlive the caller."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's to handle

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _write_tables(draft: Path, train: np.ndarray, test: np.ndarray) -> None:
    _, labels, names = load_skeletons()
    for name, first, chosen in (
        ("train_solution.csv", 0, train),
        ("test_solution.csv", FIRST_TEST_ID, test),
    ):
        rows = [(first + index, int(labels[skeleton])) for index, skeleton in enumerate(chosen)]
        _write_csv(draft / name, ("id", "label"), rows)
    mirrors = mirror_names()
    classes = [
        (label, name, names.index(mirrors[name]) if name in mirrors else "")
        for label, name in enumerate(names)
    ]
    _write_csv(draft / "classes.csv", ("label", "name", "mirror"), classes)


def _write_csv(path: Path, header: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _holds_demo(folder: Path, marker: dict[str, Any]) -> bool:
    """True if the folder holds this demo data, False if it is free; ValueError otherwise."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if found == marker:
        return True
    what = "other files"
    if isinstance(found, dict) and found.get("data") == marker["data"]:
        wrong = [f"{k} {found.get(k)} for {v}" for k, v in marker.items() if v != found.get(k)]
        what = f"other demo data ({', '.join(wrong)})"
    raise ValueError(
        f"expected {folder} to be empty or to hold this demo data, found {what}: "
        "name another folder, or remove that one"
    )


def _draft_prefix(folder: Path) -> str:
    return f".{folder.name}.drawing-"


def _remove_stale(folder: Path) -> None:
    """Remove what a killed drawing of this folder left."""
    for draft in folder.parent.glob(_draft_prefix(folder) + "*"):
        if time.time() - draft.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(draft, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _readme(num_train: int, num_test: int, seed: int) -> str:
    return f"""Demo data of the `pose` project

THE FIGURES ARE DRAWN, they are no photographs.
{num_train} train and {num_test} test images of 20 poses, seed {seed}.

The poses are real: OpenPose BODY_25 skeletons of people, from BodyPose_Dataset.csv of the Python
package pose-classification-kit 1.1.5, MIT licence, Copyright (c) 2020 Arthur Findelair. Each
skeleton is drawn once, as a clothed figure with random clothes, build, place and background. No
skeleton is in both train and test; but many skeletons are neighbouring frames of the same person,
so a score here says less than one on new people.

train_solution.csv  id,label of train_images/<id>.jpg
test_solution.csv   id,label of test_images/<id>.jpg (the truth, to score predictions with)
classes.csv         label,name,mirror: what a horizontal flip makes of a class (empty: no class)
"""
