"""Where the user is: MLflow starts a command in the project's folder, not in theirs."""

import glob
import os
from pathlib import Path

# What MLflow starts a command by; it gives way to the command or waits for it.
_LAUNCHERS = ("bash", "sh", "uv")


def callers_folder() -> Path:
    """The folder that MLflow was started in; this one where that cannot be known.

    For a command that `mlflow run` started. MLflow does not say it, so it is asked of the system;
    macOS has no /proc.
    """
    here = Path.cwd()
    try:
        pid = os.getppid()
        while _name_of(pid) in _LAUNCHERS and _folder_of(pid) == here:
            pid = _parent_of(pid)
        return _folder_of(pid)
    except (OSError, ValueError):
        return here


def without_steps_up(path: Path) -> str:
    """The path without `..`, where that names the same: behind a link it may not."""
    short = os.path.normpath(path)
    return short if os.path.realpath(short) == os.path.realpath(path) else str(path)


def as_typed_there(text: str, *, is_many: bool = False) -> str:
    """A path or pattern as the user meant it: from their folder, where that has it.

    As MLflow takes parameters of the type `path`, which know no `demo` and no `models:/`.

    Args:
        is_many: it may be several paths, joined by commas.
    """
    if is_many and "," in text:
        whole = as_typed_there(text)
        if whole != text or os.path.lexists(text):
            return whole
        return ",".join(as_typed_there(own.strip()) for own in text.split(","))
    place = callers_folder()
    if os.path.isabs(text) or place == Path.cwd():
        return text
    there = without_steps_up(place / text)
    pattern = os.path.join(glob.escape(str(place)), text)
    is_there = os.path.lexists(there) or next(glob.iglob(pattern), None) is not None
    return there if is_there else text


def _name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()


def _folder_of(pid: int) -> Path:
    return Path(os.readlink(f"/proc/{pid}/cwd"))


def _parent_of(pid: int) -> int:
    # The name before it, in brackets, may have anything in it.
    return int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
