"""What to type next: commands in the form in which the user typed the last one."""

import shlex
from collections.abc import Sequence
from typing import Any


def command_line(entry: str, is_project: bool, **options: Any) -> str:
    """A command of this project, ready to paste.

    Args:
        is_project: for `mlflow run`; else for Python.
    """
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return from_words(entry, is_project, words)


def from_words(entry: str, is_project: bool, words: Sequence[str]) -> str:
    """The same from the words behind a Python command's name, to continue what it began.

    Left out is what would begin anew, and the `--run none` that MLflow passes on where no run was
    named. MLflow's words are pairs; a user's may be flags that stand alone, or `--name=value`.
    """
    kept: list[str] = []
    for word in words:
        is_value = not word.startswith("--")
        if is_value and kept and kept[-1] in ("--fresh", "--run") and word in ("true", "none"):
            kept.pop()
        else:
            kept.append(word)
    kept = [word for word in kept if word not in ("--fresh", "--fresh=true")]
    if not is_project:
        return shlex.join(["python", "-m", f"entrypoints.{entry}", *kept])
    pairs = zip(kept[::2], kept[1::2], strict=True)
    given = [w for name, value in pairs for w in ("-P", f"{name.removeprefix('--')}={value}")]
    return shlex.join(["mlflow", "run", ".", "-e", entry, "--env-manager", "local", *given])
