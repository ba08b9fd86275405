"""What a user sees after a mistake: exit code 2 and one line, never a traceback."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]


def environment_of(folder: Path) -> dict[str, str]:
    """Everything that a command may leave behind lands in `folder`; no network is reached."""
    return {
        **os.environ,
        "PYTHONPATH": str(PROJECT),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'store.db'}",
        "KAGGLEHUB_CACHE": str(folder / "kaggle"),
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
    }


def assert_one_line(exit_code: int, output: str, message: str) -> None:
    lines = output.splitlines()
    assert exit_code == 2, output
    assert len(lines) == 1, output
    assert lines[0].startswith("error: ")
    assert message in lines[0]


# Mistakes that are found before torch is imported: a process each.


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train --run ensemble_9", "run must be one of auto, champion, demo, ensemble_1"),
        ("train --run ensemble_1 --num_epochs many", "num_epochs must be a whole number, got 'man"),
        ("train --learning-rate fast", "learning_rate must be a number, got 'fast'"),
        ("train --num-epochs 2.5", "num_epochs must be a whole number, got '2.5'"),
        ("train --batch_size 0", "batch_size must be at least 1, got 0"),
        ("data --dataset d\udce9", r"dataset must be in UTF-8, got d\udce9: rename it"),
        ("train --seeds 1_2", "seeds must be whole numbers joined by commas, got '1_2'"),
        ("train --learning-rate ١", "learning_rate must be a number, got '١'"),
        ("train --seeds 1,x", "seeds must be whole numbers joined by commas, got '1,x'"),
        ("train --seeds 1,2,1", "seeds must differ from each other, got 1,2,1"),
        ("train --seed 1 --seeds 2,3", "seed and seeds must not both be given"),
        ("train --pretrained maybe", "pretrained must be true or false, got 'maybe'"),
        ("train --num_epoch_s 3", "No such option"),
        ("train ensemble_1", "unexpected extra argument"),
        ("train --run-name a/b", "run_name must match"),
        (f"train --run-name {'x' * 151}", "run_name must have at most 150 characters, got 151"),
        ("predict --model m --images i --threads 99999999999", "threads must be at most 1024, got"),
        ("ensemble --precision half", "precision must be one of auto, bfloat16, float32"),
        ("ensemble --skip-bad-images perhaps", "skip_bad_images must be true or false"),
        ("data --command look", "command must be one of check, demo, score, got 'look'"),
        ("data --num_workers -1", "num_workers must be at least 0, got -1"),
    ],
)
def test_mistake_on_the_command_line(command, message, tmp_path):
    entry, *arguments = command.split()
    done = subprocess.run(
        [sys.executable, "-m", f"entrypoints.{entry}", *arguments],
        cwd=tmp_path,
        env=environment_of(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert_one_line(done.returncode, done.stderr, message)
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


# Mistakes that are found later. Importing torch and MLflow takes seconds, so one process does
# it, and each command runs in a fork of it, as its entry point would.
RUN_IN_FORKS = """
import json, multiprocessing, os, runpy, sys
import pose.console, pose.run, pose.vote
forks = multiprocessing.get_context("fork")
def run(entry, arguments, output):
    os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.argv = [entry, *arguments]
    runpy.run_module(entry, run_name="__main__", alter_sys=True)
exit_codes = {}
for name, (entry, arguments) in json.load(sys.stdin).items():
    child = forks.Process(target=run, args=(f"entrypoints.{entry}", arguments, f"{name}.err"))
    child.start()
    child.join(60)
    exit_codes[name] = child.exitcode
print(json.dumps(exit_codes))
"""
LATE = {
    # name: command, message
    "unknown_model": ("train --model resnet", "model must be one of pose_net, simple_cnn, simple_"),
    "unknown_classifier": ("train --model torchvision/x", "torchvision's classifiers (alexnet, "),
    "unknown_augmentation": ("train --augmentation x", "augmentation must be one of baseline, en"),
    "unknown_device": ("train --device cuda:7", "device must exist on this machine, got 'cuda:7'"),
    "no_device": ("train --device tpu", "device must be auto, cpu, cuda, cuda:<n> or mps, got 'tp"),
    "no_data": ("train", "Give a folder (--dataset PATH), put the data there, or draw"),
    "no_data_to_check": ("data", "Give a folder (--dataset PATH), put the data there, or"),
    "no_folder": ("data --dataset nowhere", "'nowhere', which is no folder; dataset demo draws"),
    "contradiction": (
        "train --dataset contradictory",
        "contradictory: 1 ids with different labels (correct them): 0",
    ),
    "contradiction_found_by_check": (
        "data --dataset contradictory",
        "contradictory: 1 ids with different labels (correct them): 0",
    ),
    "long_folder": (
        f"train --dry-run --dataset few --output-root {'x' * 300}",
        "output_root must be a folder that can be made, found: file name too long",
    ),
    "too_few": ("train --dataset few", "val_fraction must leave rows for 2 classes"),
    "unknown_voting": (
        "ensemble --voting mean",
        "voting must be one of auto, greedy, hard, rank, soft, stacking, weighted, got 'mean'",
    ),
    "no_folder_to_write_to": (
        "ensemble --out_path nowhere/predictions.csv",
        "out_path must be a file in a folder that exists, got 'nowhere/predictions.csv'",
    ),
    "folder_to_write_to": ("ensemble --out_path few", "out_path must be a file in a folder that"),
    "parent_of_two": ("ensemble --run a,b --parent c", "parent must go with a single run, got 2"),
    "unregistered_run": ("ensemble --run untrained --dataset few", "untrained"),
    "nothing_to_score": (
        "data --command score --dataset few",
        "must be a file with the columns id,label",
    ),
    "foreign_folder": ("data --command demo --out few", "found other files"),
}


@pytest.fixture(scope="module")
def late_mistakes(tmp_path_factory, make_dataset) -> dict[str, tuple[int, str]]:
    """Exit code and standard error of each command in `LATE`."""
    folder = tmp_path_factory.mktemp("mistakes")
    few = make_dataset(folder / "few", num_per_class=2, size=16, num_test=1)
    contradictory = Path(shutil.copytree(few, folder / "contradictory"))
    with open(contradictory / "train_solution.csv", "a", encoding="utf-8") as table:
        table.write("0,0\n0,1\n")
    commands = {name: command.split() for name, (command, _) in LATE.items()}
    done = subprocess.run(
        [sys.executable, "-c", RUN_IN_FORKS],
        input=json.dumps({name: (words[0], words[1:]) for name, words in commands.items()}),
        cwd=folder,
        env=environment_of(folder),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    exit_codes = json.loads(done.stdout)
    assert not (folder / "outputs").exists() or not list((folder / "outputs").glob("[!.]*"))
    return {
        name: (exit_codes[name], (folder / f"{name}.err").read_text(encoding="utf-8"))
        for name in LATE
    }


@pytest.mark.parametrize("name", LATE)
def test_mistake_that_is_found_later(name, late_mistakes):
    assert_one_line(*late_mistakes[name], LATE[name][1])


PRINTS = """
import sys, click
from entrypoints.options import run_command

@click.command()
def main():
    for number in range(3):
        click.echo(f"line {number} \\u0451" + "x" * 10_000)
        print("printed", flush=True)
    open("done", "w").close()

run_command(main)
"""


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", "line 0 \u0451"), ("latin-1", "line 0 \\u0451")]
)
@pytest.mark.parametrize(
    ("redirected", "code", "message"),
    [
        ("| head -1 > first", 0, ""),
        ("> /dev/full", 2, "standard output must be taken, found: disk full; the work itself is"),
        (">&-", 0, ""),
        (">&- 2>&- <&-", 0, ""),
        ("> first", 0, ""),
    ],
)
def test_work_goes_on_whatever_becomes_of_the_output(
    tmp_path, redirected, code, message, encoding, shown
):
    (tmp_path / "prints.py").write_text(PRINTS)
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; '{sys.executable}' prints.py {redirected}"],
        cwd=tmp_path,
        env={**environment_of(tmp_path), "PYTHONIOENCODING": encoding},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    assert (tmp_path / "done").exists()
    assert message in done.stderr
    assert done.stderr.count("\n") == bool(message)
    if (tmp_path / "first").exists():
        assert (tmp_path / "first").read_text(encoding="utf-8").startswith(shown)
