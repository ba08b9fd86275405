"""What to type next: commands in the form in which the user typed the last one."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from entrypoints.caller import callers_folder


def project_address(given_run_id: str | None) -> str | None:
    """What `mlflow run` was given for this project: `.`, or its folder from elsewhere.

    None for a command that `mlflow run` did not start. MLflow works in the project's folder; the
    user does where MLflow was started.
    """
    if given_run_id is None:
        return None
    here = Path.cwd()
    return "." if callers_folder() == here else str(here)


def command_line(entry: str, project: str | None, **options: Any) -> str:
    """A command of this project, ready to paste.

    Args:
        project: what `mlflow run` is given; None: for Python.
    """
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return from_words(entry, project, words)


def from_words(entry: str, project: str | None, words: Sequence[str]) -> str:
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
    if project is None:
        return shlex.join(["python", "-m", f"entrypoints.{entry}", *kept])
    pairs = zip(kept[::2], kept[1::2], strict=True)
    given = [w for name, value in pairs for w in ("-P", f"{name.removeprefix('--')}={value}")]
    return shlex.join(["mlflow", "run", project, "-e", entry, "--env-manager", "local", *given])


def with_more_seeds(command: str, seeds: str) -> str:
    """A train command as it was recorded, with `seeds` to add; empty where there is none.

    Args:
        seeds: joined by commas.
    """
    if not command:
        return ""
    words = shlex.split(command)
    if words[0] != "mlflow":
        return shlex.join([*words, "--add_seeds", seeds])
    given = [number for number, word in enumerate(words) if word.startswith("add_seeds=")]
    for number in given:
        # MLflow refuses a parameter that is given twice.
        del words[number - 1 : number + 1]
    return shlex.join([*words, "-P", f"add_seeds={seeds}"])
