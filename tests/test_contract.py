"""The rules that hold the project together: MLproject, options, defaults, and imports."""

import ast
import dataclasses
import importlib
import os
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import click
import pytest
import yaml

from entrypoints.options import NOT_GIVEN
from pose.config import (
    CompareSetup,
    DataSetup,
    DemoSetup,
    ExportSetup,
    ImportSetup,
    PredictSetup,
    Recipe,
    ScoreSetup,
    ServeSetup,
    Setup,
    SweepSetup,
    VoteSetup,
)
from pose.errors import InputError

PROJECT = Path(__file__).parents[1]
MLPROJECT = yaml.safe_load((PROJECT / "MLproject").read_text(encoding="utf-8"))
ENTRY_POINTS = MLPROJECT["entry_points"]
COMMANDS = (
    "train",
    "ensemble",
    "compare",
    "export",
    "predict",
    "serve",
    "data",
    "sweep",
    "import",
    "runs",
    "store",
    "sync",
)
PARAMETERS = [
    (entry, name) for entry, spec in ENTRY_POINTS.items() for name in spec.get("parameters", {})
]


def options_of(entry: str) -> dict[str, click.Option]:
    return {option.name: option for option in entry_module(entry).main.params}


def entry_module(entry: str):
    return importlib.import_module(f"entrypoints.{entry}")


# MLproject


def test_every_entry_point_runs_its_module():
    assert set(ENTRY_POINTS) >= {"main", *COMMANDS}
    for entry, spec in ENTRY_POINTS.items():
        assert spec["command"].split()[:3] == ["python", "-m", f"entrypoints.{entry}"]
        assert callable(entry_module(entry).main)


@pytest.mark.parametrize(("entry", "name"), PARAMETERS)
def test_declared_parameter_is_forwarded_to_an_option_with_the_same_default(entry, name):
    # An option that is declared and not forwarded would be logged by MLflow all the same.
    assert f"--{name} {{{name}}}" in ENTRY_POINTS[entry]["command"]
    option = options_of(entry)[name]
    declared = ENTRY_POINTS[entry]["parameters"][name]["default"]
    assert isinstance(declared, str), "YAML made a number of it"
    # The word for no value; an empty text would be a shell's unset variable as well.
    fields = {f.name: f for part in SETTINGS[entry] for f in dataclasses.fields(part)}
    default = fields[name].default if name in fields else option.default
    assert declared == ("none" if default in (None, NOT_GIVEN) else default)


@pytest.mark.parametrize("entry", ENTRY_POINTS)
def test_command_forwards_declared_parameters_only(entry):
    forwarded = re.findall(r"{(\w+)}", ENTRY_POINTS[entry]["command"])
    assert forwarded == list(ENTRY_POINTS[entry].get("parameters", {}))


def test_environment_file_is_there():
    assert (PROJECT / MLPROJECT["conda_env"]).is_file()


# Options


@pytest.mark.parametrize("entry", COMMANDS)
def test_every_option_has_both_spellings(entry):
    for name, option in options_of(entry).items():
        # -P batch_size=3 arrives as --batch_size 3.
        assert set(option.opts) == {f"--{name}", f"--{name.replace('_', '-')}"}


SETTINGS = {
    "train": (Recipe, Setup),
    "ensemble": (VoteSetup,),
    "compare": (CompareSetup,),
    "export": (ExportSetup,),
    "predict": (PredictSetup,),
    "serve": (ServeSetup,),
    "data": (DataSetup, DemoSetup, ScoreSetup),
    "sweep": (SweepSetup, Recipe, Setup),
    "import": (ImportSetup,),
    "store": (),
    "sync": (),
}
# A sweep's own budget stands for the recipe's; a sweep begins or goes on by itself. An export is
# made on the CPU.
LEFT_OUT = {
    ("export", ExportSetup, "device"),
    ("sweep", Recipe, "budget"),
    ("sweep", Setup, "fresh"),
    ("sweep", Setup, "add_seeds"),
}
FIELDS = [
    (entry, field)
    for entry, parts in SETTINGS.items()
    for part in parts
    for field in dataclasses.fields(part)
    if (entry, part, field.name) not in LEFT_OUT
]


@pytest.mark.parametrize(
    ("entry", "field"), FIELDS, ids=lambda value: getattr(value, "name", value)
)
def test_every_setting_is_an_option_that_shows_its_default(entry, field):
    option = options_of(entry)[field.name]
    assert option.default is NOT_GIVEN, "the default stands in the dataclass alone"
    assert option.help.startswith(field.metadata["help"])
    shown = re.search(r"\[default: (.*)\]$", option.help)
    if field.default is None or field.default == ():
        assert shown is None
    else:
        assert option.type.convert(shown[1], option, None) == field.default


@pytest.mark.parametrize(
    ("option", "text", "value"),
    [
        ("seeds", "76,100", (76, 100)),
        ("seeds", "76", (76,)),
        ("split_seed", "none", None),
        ("split_seed", "7", 7),
        ("learning_rate", "1e-3", 0.001),
        ("pretrained", "True", True),
        ("pretrained", "no", False),
        ("run_name", "none", None),
        ("run", "none", None),
    ],
)
def test_texts_of_a_command_line_become_values(option, text, value):
    option = options_of("train")[option]
    assert option.type.convert(text, option, None) == value


@pytest.mark.parametrize("name", ["run", "num_epochs", "dry_run", "run_name", "seeds"])
def test_an_empty_value_is_refused(name):
    option = options_of("train")[name]
    for text in ("", "  "):
        with pytest.raises(InputError, match=f"{name} must not be empty"):
            option.type.convert(text, option, None)


# Starting


def run_python(code: str, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error::SyntaxWarning", "-c", code, *arguments],
        cwd=environment.pop("cwd", PROJECT),
        env={**os.environ, "PYTHONPATH": str(PROJECT), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


RUN_AS_MAIN = """
import runpy, sys
del sys.argv[0]
try:
    runpy.run_module(f"entrypoints.{sys.argv[0]}", run_name="__main__", alter_sys=True)
except SystemExit as end:
    assert not end.code, end.code
print("heavy:", sorted({"torch", "mlflow", "pandas", "sklearn", "optuna"} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("entry", "argument", "text"),
    [
        ("train", "--help", "--batch-size"),
        ("ensemble", "--help", "--voting"),
        ("compare", "--help", "--runs"),
        ("export", "--help", "--formats"),
        ("predict", "--help", "--skip-bad-images"),
        ("serve", "--help", "--port"),
        ("data", "--help", "--draw-seed"),
        ("sweep", "--help", "--space"),
        ("main", "", "mlflow run . -e train"),
        ("train", "--list", "the original's leaderboard F1: soft 0.93749, hard 0.93358"),
    ],
)
def test_quick_answers_wait_for_no_heavy_library(entry, argument, text):
    answer = run_python(RUN_AS_MAIN, entry, *filter(None, [argument]))
    assert text in answer
    assert answer.endswith("heavy: []\n")


IMPORT_ALL = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
import mlflow
print(mlflow.active_run())
"""


def test_importing_any_module_leaves_nothing_behind(tmp_path):
    home, work, other = (tmp_path / name for name in ("home", "work", "other"))
    for folder in (home, work, other):
        folder.mkdir()
    answer = run_python(
        IMPORT_ALL,
        *IMPORTS,
        cwd=work,
        HOME=str(home),
        POSE_CACHE=str(home / "pose"),
        MPLCONFIGDIR=str(other),
        TORCH_HOME=str(home / "torch"),
    )
    assert answer == "None\n"
    assert list(work.iterdir()) == []
    assert list(home.rglob("*")) == []


# Imports


def module_name(path: Path) -> str:
    parts = path.relative_to(PROJECT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {
    module_name(path): path
    for folder in ("pose", "pose_models", "entrypoints")
    for path in sorted((PROJECT / folder).rglob("*.py"))
}


def imports_of(path: Path) -> set[str]:
    """Every module that is imported: inside functions too, and for type checkers alone."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            submodules = whole & set(SOURCES)
            found.update(submodules)
            if len(submodules) < len(node.names):
                found.add(node.module)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


IMPORTS = {name: imports_of(path) for name, path in SOURCES.items()}


def packages_of(name: str) -> set[str]:
    return {imported.partition(".")[0] for imported in IMPORTS[name]}


def test_one_package_speaks_to_mlflow():
    speaking = {name for name in IMPORTS if "mlflow" in packages_of(name)}
    # What MLflow itself calls, in a saved model.
    speaking.remove("pose_models.pyfunc")
    assert speaking
    assert all(name.startswith("pose.tracking") for name in speaking)


def needed_by(name: str) -> set[str]:
    needed, waiting = set(), {name}
    while waiting:
        name = waiting.pop()
        needed.add(name)
        waiting |= {other for other in IMPORTS[name] if other in SOURCES} - needed
    return needed


def test_training_needs_no_mlflow():
    needed = needed_by("pose.seeds.engines")
    assert needed >= {"pose.training.loop", "pose.seeds.train"}
    assert not any(name.startswith("pose.tracking") for name in needed)


def test_models_can_travel_alone():
    allowed = {
        "torch", "torchvision", "numpy", "PIL", "simplejpeg", "pose_models",
        "timm", "huggingface_hub",
        *sys.stdlib_module_names,
    }  # fmt: skip
    names = [name for name in IMPORTS if name.startswith("pose_models")]
    assert len(names) > 8
    for name in names:
        by_mlflow = {"mlflow", "pandas"} if name == "pose_models.pyfunc" else set()
        assert packages_of(name) <= allowed | by_mlflow


def test_ensembling_needs_no_torch():
    for name in (name for name in IMPORTS if name.startswith("pose.ensembling")):
        packages = {p for other in needed_by(name) for p in packages_of(other)}
        assert not packages & {"torch", "mlflow"}


def test_nothing_imports_an_entry_point():
    importing = {name for name in IMPORTS if "entrypoints" in packages_of(name)}
    assert all(name.startswith("entrypoints.") for name in importing)
    assert importing, "entry points share their options"


# Low to high; each may import what stands before it or in its own place. The old address of the
# models stands apart: nothing imports it.
LAYERS = (
    "arrays errors files growing_table history member_key metrics records stop",
    "pose_models demo",
    "cluster config device named_runs display weights workers",
    "data",
    "archive model_card predictions plan scoring soft_labels training",
    "ensembling",
    "results",
    "overview",
    "reports console",
    "search seeds",
    "tracking",
    "result_pages",
    "compare_page",
    "export",
    "export_command predict predict_rows serving",
    "ballot distil look restore rounds sync run vote voters",
    "auto compare importing sweep",
    "entrypoints",
)
LAYER_OF = {place: number for number, layer in enumerate(LAYERS) for place in layer.split()}


def layer_of(name: str) -> int:
    first, _, rest = name.partition(".")
    return LAYER_OF[rest.partition(".")[0] if first == "pose" and rest else first]


LAYERED = [name for name in SOURCES if name not in ("pose", "pose.models")]


@pytest.mark.parametrize("name", LAYERED)
def test_a_module_imports_from_its_own_layer_and_below(name):
    above = {
        other for other in IMPORTS[name] if other in LAYERED and layer_of(other) > layer_of(name)
    }
    assert above == set()


def test_nothing_imports_the_old_address_of_the_models():
    assert not [name for name in IMPORTS if "pose.models" in IMPORTS[name]]


def test_imports_go_one_way():
    graph = {
        name: {other for other in imported if other in SOURCES}
        for name, imported in IMPORTS.items()
    }
    assert graph["pose.run"] >= {"pose.tracking", "pose.seeds.engines"}
    # Raises CycleError, which names the circle. A package's own list of its modules is not one.
    order = list(TopologicalSorter(graph).static_order())
    assert set(order) == set(SOURCES)
