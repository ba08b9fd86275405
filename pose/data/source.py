"""Where a data folder comes from: a path, the drawn poses, or Kaggle."""

import os
from pathlib import Path

from pose.config import DataSetup, DemoSetup
from pose.data.folder import LABELS_FILE
from pose.display import Display
from pose.errors import InputError, one_line
from pose.files import writing

DEMO_FOLDER = Path("demo")
# Lies in a folder of drawn figures, and only there.
DEMO_MARKER = "demo.json"


def locate_dataset(setup: DataSetup) -> Path | None:
    """The data folder that is meant, if it is here; None if it would be drawn or downloaded.

    Raises:
        InputError: what was named is not a folder.
    """
    if setup.dataset == "demo":
        # Drawn already, perhaps with other numbers by the data command: then that one is meant.
        return DEMO_FOLDER if os.path.exists(DEMO_FOLDER / DEMO_MARKER) else None
    if setup.dataset is not None:
        folder = Path(setup.dataset)
        # os.path's, since pathlib's raises where a name is too long or may not be looked at.
        if not os.path.isdir(folder):
            raise InputError(
                f"dataset must be a folder with {LABELS_FILE} and train_images/, "
                f"got {setup.dataset[:200]!r}, which is no folder; dataset demo draws one"
            )
        return _descend(folder)
    return _descend(Path("dataset")) if os.path.isdir("dataset") else None


def find_dataset(setup: DataSetup, display: Display) -> Path:
    """The data folder that `setup` names, else `./dataset`, else Kaggle's download.

    Raises:
        InputError: there is none; the message lists the ways to get one.
    """
    folder = locate_dataset(setup)
    if folder is not None:
        return folder
    if setup.dataset == "demo":
        return draw_demo(DemoSetup(out=str(DEMO_FOLDER)), display)
    return _descend(_download(setup.kaggle_handle))


def draw_demo(setup: DemoSetup, display: Display) -> Path:
    """Draw the demo data, unless it is there.

    Raises:
        InputError: the folder holds something else.
    """
    # Imported here: drawing is needed once, and a large table of skeletons comes with it.
    from pose.demo.draw import write_demo

    try:
        with writing(Path(setup.out)):
            return write_demo(
                setup.out,
                num_train=setup.num_train or None,
                num_test=setup.num_test,
                seed=setup.draw_seed,
                progress=display.draw_progress,
            )
    except InputError:
        raise
    except ValueError as error:
        raise InputError(str(error)) from error


def _descend(folder: Path) -> Path:
    """`folder`, or the `dataset/` folder in it where the data lies there."""
    nested = folder / "dataset"
    has_data = any(os.path.lexists(folder / name) for name in (LABELS_FILE, "train_images"))
    return nested if not has_data and os.path.isdir(nested) else folder


def _download(handle: str) -> Path:
    # Imported here: it asks the network for its newest version, and most runs need none of it.
    import kagglehub

    try:
        return Path(kagglehub.dataset_download(handle))
    # kagglehub passes on whatever requests, urllib3 or its own code raise; all mean no data.
    except Exception as error:
        raise InputError(
            f"no data: expected {Path('dataset').absolute()}, found none, and Kaggle's {handle} "
            f"could not be had ({one_line(error)}). Give a folder (--dataset PATH), put the data "
            "there, or draw the demo data (--dataset demo)"
        ) from error
