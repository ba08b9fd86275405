"""The README is executed: its blocks, in order, in one copy of the project, as a reader would.

The documents beside it are held to the code: their commands name things that exist, their links
lead somewhere, their tables and trees are those of the repository.
"""

import importlib
import re
import shlex
import site
import socket
import venv
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from project import Project

from entrypoints import (
    compare,
    data,
    ensemble,
    export,
    predict,
    runs,
    serve,
    store,
    sweep,
    sync,
    train,
)
from pose.config import Recipe
from pose.named_runs import NAMED_RUNS

ROOT = Path(__file__).parents[1]
COMMANDS = {
    "train": train.main,
    "ensemble": ensemble.main,
    "compare": compare.main,
    "data": data.main,
    "export": export.main,
    "predict": predict.main,
    "serve": serve.main,
    "store": store.main,
    "sync": sync.main,
    "runs": runs.main,
    "sweep": sweep.main,
    # The name of its module is a word of Python's.
    "import": importlib.import_module("entrypoints.import").main,
}
README, RUSSIAN = ROOT / "README.md", ROOT / "README.ru.md"
DOCUMENTS = [README, RUSSIAN, *sorted((ROOT / "docs").glob("*.md"))]

# The one difference between the README's commands and what is run here: the `mlflow` that the
# test's environment has adds SMALL to every train command, so that an epoch takes a second, and
# closes `mlflow ui` once it answers. All else is passed on as it is.
SMALL = {"num_epochs": 1, "image_size": 32, "batch_size": 16}
SHIM = """\
#!{python}
import subprocess, sys, time, urllib.request
from mlflow.cli import cli

small, words = {small!r}, sys.argv[1:]
if words[:4] == ["run", ".", "-e", "train"]:
    words += [w for name, value in small.items() for w in ("-P", f"{{name}}={{value}}")]
if words[:1] != ["ui"]:
    sys.exit(cli(words))
ui = [sys.executable, "-m", "mlflow", "ui", "--workers", "1", "--port", "{port}"]
server = subprocess.Popen(ui)
try:
    for _ in range(600):
        time.sleep(0.1)
        try:
            with urllib.request.urlopen("http://127.0.0.1:{port}/health") as answer:
                print("mlflow ui answers", answer.status)
                break
        except OSError:
            assert server.poll() is None, "mlflow ui has ended"
    else:
        sys.exit("mlflow ui does not answer")
finally:
    server.terminate()
    server.wait()
"""


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def blocks_of(path: Path, *languages: str) -> list[tuple[str, str]]:
    """`(language, text)` of the fenced blocks in these languages; of all without any."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", read(path), flags=re.DOTALL | re.MULTILINE)
    return [block for block in found if not languages or block[0] in languages]


@pytest.fixture(scope="module")
def reader(tmp_path_factory, make_dataset, free_port) -> Project:
    """A project with an environment in `.venv`, as `make env` would have made it, and data of its
    own; the demo's figures are stripes, drawn already."""
    project = Project(tmp_path_factory.mktemp("readme") / "pose")
    for name in ["Makefile", *(path.name for path in ROOT.glob("requirements-*.txt"))]:
        (project.folder / name).write_text(read(ROOT / name), encoding="utf-8")
    _make_environment(project.folder / ".venv", free_port)
    demo = make_dataset(project.folder / "demo", num_per_class=150)
    (demo / "demo.json").write_text("{}\n", encoding="utf-8")
    make_dataset(project.folder / "my_data", num_per_class=(150, 150), labels=("cat", "dog"))
    return project


@pytest.fixture(scope="module")
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _make_environment(folder: Path, port: int) -> None:
    """An environment with the packages of the one that runs the tests, and SHIM for `mlflow`."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    (packages,) = folder.glob("lib/python*/site-packages")
    lines = [f"import site; site.addsitedir({path!r})" for path in site.getsitepackages()]
    (packages / "tests.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")
    shim = folder / "bin" / "mlflow"
    shim.write_text(SHIM.format(python=python, small=SMALL, port=port), encoding="utf-8")
    shim.chmod(0o755)
    (folder / ".installed").touch()


@pytest.fixture(scope="module")
def outputs(reader) -> list[tuple[str, str]]:
    """`(text, what it printed)` of every bash and python block of the README, run in order."""
    printed = []
    for language, text in blocks_of(README, "bash", "python"):
        python = str(reader.folder / ".venv" / "bin" / "python")
        command = ("bash", "-ec") if language == "bash" else (python, "-c")
        # A reader activates the environment once; here every block has a shell of its own.
        before = "source .venv/bin/activate\n" if language == "bash" else ""
        printed.append((text, reader.run(*command, before + text)))
    return printed


def output_of(outputs: list[tuple[str, str]], word: str) -> str:
    (found,) = [printed for text, printed in outputs if word in text]
    return found


def test_the_demo_ends_as_the_readme_says(outputs):
    (promised,) = [text for _, text in blocks_of(README, "text") if "macro F1" in text]
    pattern = r"[\d.]+".join(map(re.escape, re.split(r"\d+(?:\.\d+)?", promised)))
    assert re.search(pattern, output_of(outputs, "make demo"))
    assert "mlflow ui answers 200" in output_of(outputs, "make demo")


def test_the_data_are_described(outputs):
    printed = output_of(outputs, "-e data")
    assert "labelled images: 300\n" in printed
    assert "problems: none\n" in printed


def test_seeds_are_trained_and_added_to_the_same_run(reader, outputs):
    printed = output_of(outputs, "add_seeds")
    assert "val_f1 of 3 seeds" in printed
    assert "val_f1 of 5 seeds" in printed
    assert "run: champion (champion)" in printed  # the dry run
    assert [run.data.tags["seeds"] for run in reader.runs("train", run="champion")] == ["0,1,2,3,4"]


def test_the_vote_takes_the_newest_run_and_its_data(reader, outputs):
    printed = output_of(outputs, "-e ensemble")
    assert "run: champion, " in printed
    assert "5 members" in printed
    rows = read(reader.folder / "predictions.csv").splitlines()
    assert rows[0] == "id,label"
    assert {row.split(",")[1] for row in rows[1:]} <= {"cat", "dog"}
    assert len(rows) == 1 + 12


def test_seeds_are_compared(outputs):
    table = output_of(outputs, "search_runs").splitlines()
    assert len(table) == 1 + 3 + 5
    scores = [float(line.split()[3]) for line in table[1:]]
    assert scores == sorted(scores, reverse=True)


def test_an_image_gets_a_label(outputs):
    header, row = output_of(outputs, "load_model").splitlines()
    assert header.split() == ["label", "name", "confidence"]
    assert row.split()[1] in ("0", "1")


def test_both_languages_have_the_same_blocks():
    assert blocks_of(RUSSIAN) == blocks_of(README)


def test_both_languages_have_the_same_sections_links_and_figures():
    def facts(path: Path) -> tuple[list[int], list[str], list[str]]:
        text = re.sub(r"^```.*?^```$", "", read(path), flags=re.DOTALL | re.MULTILINE)
        levels = [len(marks) for marks in re.findall(r"^(#+) ", text, flags=re.MULTILINE)]
        links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "README" not in link]
        figures = re.findall(r"\d[\d.,]*\d", text.replace("\u00a0", ","))
        return levels, sorted(links), sorted(figures)

    assert facts(RUSSIAN) == facts(README)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\(([^)]+)\)", read(path))
    local = [link.partition("#")[0] for link in links if "://" not in link]
    assert [link for link in local if link and not (path.parent / link).exists()] == []


def test_red_lines_are_those_that_the_code_prints():
    """But for the two that other programs print."""
    rows = read(README).split("## When something is red")[1].split("\n\n")[2].splitlines()[2:]
    quoted = [row.split("|")[1].strip() for row in rows]
    ours = [text.split("`")[1] for text in quoted if text.startswith("`")]
    foreign = ["Could not find Conda executable", "No module named ..."]
    assert ours[:2] == foreign
    files = [path for name in ("pose", "entrypoints") for path in (ROOT / name).rglob("*.py")]
    code = "\n".join(map(read, files))
    parts = [part.strip() for text in ours[2:] for part in text.split("...") if part.strip()]
    assert len(parts) >= 6
    assert [part for part in parts if part not in code] == []


LINES = sorted(
    {
        line.split("  #")[0].strip()
        for path in DOCUMENTS
        for _, block in blocks_of(path, "bash")
        for line in block.replace("\\\n", "").splitlines()
    }
)
MLFLOW_RUNS = [line for line in LINES if line.startswith("mlflow run . -e")]
# A dry run reads the files and runs that it is given; those in the pages are the reader's own, or
# downloaded.
READ_FILES = ("weights=", "exclude=", "distil=", "run=finetune")
TRAIN_RUNS = [
    line
    for line in MLFLOW_RUNS
    if "-e train" in line and not any(f"-P {name}" in line for name in READ_FILES)
]
MAKE_TARGETS = sorted({line.split()[1] for line in LINES if line.startswith("make ")})


def parse_mlflow_run(line: str) -> tuple[str, dict[str, str]]:
    words = shlex.split(line.split("#")[0])
    pairs = [words[n + 1] for n, word in enumerate(words) if word == "-P"]
    return words[words.index("-e") + 1], dict(pair.split("=", 1) for pair in pairs)


@pytest.mark.parametrize("line", MLFLOW_RUNS)
def test_a_command_names_an_entry_point_and_its_options(line):
    entry_point, parameters = parse_mlflow_run(line)
    project = yaml.safe_load(read(ROOT / "MLproject"))
    assert entry_point in project["entry_points"]
    names = {param.name for param in COMMANDS[entry_point].params}
    assert set(parameters) <= names


@pytest.mark.parametrize("line", TRAIN_RUNS)
def test_a_train_command_resolves(line, tmp_path, stripes, monkeypatch):
    _, parameters = parse_mlflow_run(line)
    if "dataset" in parameters:
        parameters["dataset"] = str(stripes)
    monkeypatch.chdir(tmp_path)
    words = [word for key, value in parameters.items() for word in (f"--{key}", value)]
    done = CliRunner().invoke(train.main, [*words, "--dry-run"], catch_exceptions=False)
    assert done.exit_code == 0
    name = parameters.get("run") or parameters.get("model", Recipe.model).replace("/", "_")
    assert done.output.startswith(f"run: {name} ")


@pytest.mark.parametrize("target", MAKE_TARGETS)
def test_a_make_target_exists(target):
    assert re.search(rf"^{target}:", read(ROOT / "Makefile"), re.MULTILINE)


def test_the_table_has_every_named_run_with_its_facts():
    rows = {}
    for line in read(ROOT / "docs" / "runs.md").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and cells[0].strip("`") in NAMED_RUNS:
            rows[cells[0].strip("`")] = cells
    assert list(rows) == list(NAMED_RUNS)
    for name, run in NAMED_RUNS.items():
        _, model, augmentation, seeds, scores, leaderboard = rows[name]
        assert model == run.recipe.model
        assert augmentation == run.recipe.augmentation
        assert seeds == run.recipe.seeds_text().replace(",", " ")
        new = {
            score
            for seed, score in run.val_f1.items()
            if name != "ensemble_3" or seed in (101, 102)
        }
        assert all(f"{score:.6f}" in scores for score in new)
        assert leaderboard == run.leaderboard.split(";")[0]


def test_the_tree_is_that_of_the_repository():
    ((_, tree),) = blocks_of(ROOT / "docs" / "layout.md", "text")
    named = {line.split()[0] for line in tree.splitlines() if line and not line.startswith(" ")}
    assert [name for name in named if not (ROOT / name).exists()] == []
    packages = {
        f"{path.parent.relative_to(ROOT)}/"
        for path in [*ROOT.glob("*/__init__.py"), *(ROOT / "pose").glob("*/__init__.py")]
    }
    modules = {f"pose/{path.name}" for path in (ROOT / "pose").glob("*.py")} - {"pose/__init__.py"}
    assert (packages | modules) - named == {"pose/"}
