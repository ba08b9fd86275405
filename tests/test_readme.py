"""The README's commands name things that exist, and its table is that of the named runs."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from entrypoints import data, ensemble, train
from pose.named_runs import NAMED_RUNS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = {"train": train.main, "ensemble": ensemble.main, "data": data.main}
BLOCKS = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
LINES = [
    line.split("  #")[0].strip()
    for block in BLOCKS
    for line in block.splitlines()
    if line.strip() and not line.startswith("#")
]
MLFLOW_RUNS = [line for line in LINES if line.startswith("mlflow run . -e")]
MAKE_TARGETS = [line.split()[1] for line in LINES if line.startswith("make ")]


def parse_mlflow_run(line: str) -> tuple[str, dict[str, str]]:
    words = shlex.split(line.split("#")[0])
    pairs = [words[n + 1] for n, word in enumerate(words) if word == "-P"]
    return words[words.index("-e") + 1], dict(pair.split("=", 1) for pair in pairs)


def test_there_are_commands_to_check():
    assert len(MLFLOW_RUNS) >= 8
    assert {"demo", "test"} <= set(MAKE_TARGETS)


@pytest.mark.parametrize("line", MLFLOW_RUNS)
def test_a_command_names_an_entry_point_and_its_options(line):
    entry_point, parameters = parse_mlflow_run(line)
    project = yaml.safe_load((ROOT / "MLproject").read_text(encoding="utf-8"))
    assert entry_point in project["entry_points"]
    names = {param.name for param in COMMANDS[entry_point].params}
    assert set(parameters) <= names


@pytest.mark.parametrize("line", [line for line in MLFLOW_RUNS if "-e train" in line])
def test_a_train_command_resolves(line):
    _, parameters = parse_mlflow_run(line)
    words = [word for key, value in parameters.items() for word in (f"--{key}", value)]
    done = CliRunner().invoke(train.main, [*words, "--dry-run"], catch_exceptions=False)
    assert done.exit_code == 0
    name = parameters.get("run") or parameters["model"].replace("/", "_")
    assert done.output.startswith(f"run: {name} ")


@pytest.mark.parametrize("target", sorted(set(MAKE_TARGETS)))
def test_a_make_target_exists(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def test_the_table_has_every_named_run_with_its_facts():
    rows = {}
    for line in README.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and cells[0].strip("`") in NAMED_RUNS:
            rows[cells[0].strip("`")] = cells
    assert list(rows) == list(NAMED_RUNS)
    for name, run in NAMED_RUNS.items():
        _, model, augmentation, _, scores, leaderboard, _ = rows[name]
        assert model == run.recipe.model
        assert augmentation == run.recipe.augmentation
        new = {
            score
            for seed, score in run.val_f1.items()
            if name != "ensemble_3" or seed in (101, 102)
        }
        assert all(f"{score:.6f}" in scores for score in new)
        assert leaderboard == run.leaderboard.split(";")[0]


def test_the_file_tree_is_that_of_the_repository():
    tree = README.split("## What is where")[1].split("```")[1]
    named = set(re.findall(r"(pose/\w+(?:\.py|/)|pose_models/|entrypoints/|benchmarks/)", tree))
    assert all((ROOT / name).exists() for name in named)
    packages = {f"pose/{path.parent.name}/" for path in (ROOT / "pose").glob("*/__init__.py")}
    assert packages - {"pose/models/"} <= named
