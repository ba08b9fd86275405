"""A team's server, set up by the commands of docs/team.md: MLflow on a PostgreSQL of its own."""

import contextlib
import filecmp
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from project import PATIENCE, ROOT, Project

pytestmark = pytest.mark.usefixtures("all_memory")

PAGE = (ROOT / "docs" / "team.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
SMALL = {"run": "ensemble_1", "num_epochs": 2, "image_size": 32, "batch_size": 16, "split_seed": 0}
SEEDS = range(6)


def block(word: str) -> str:
    """The one block of the page that has `word`."""
    (found,) = [text for text in BLOCKS if word in text]
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Machine:
    """The server's machine: `folder` for /srv/mlflow, and a PostgreSQL on a socket in it."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        # A socket's address has room for a hundred characters.
        self.sockets = Path("/tmp") / f"pose-{os.getpid()}"
        self.environment = {
            **os.environ,
            "PATH": path,
            "PGHOST": str(self.sockets),
            "PGUSER": "mlflow",
            "PYTHONPATH": str(ROOT),
            "MLFLOW_WORKERS": "1",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }

    def text_of(self, word: str) -> str:
        """A block of the page, for this machine."""
        return block(word).replace("/srv/mlflow", str(self.folder)).replace("5000", str(self.port))

    def run(self, text: str, cwd: Path | None = None, **environment: str) -> str:
        """Run commands in bash, to their end."""
        done = subprocess.run(
            ["bash", "-ec", text],
            cwd=cwd or self.folder,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @contextlib.contextmanager
    def serving(self, text: str, **environment: str) -> Iterator[None]:
        """A server in the background, started by the page's commands."""
        with open(self.folder / "server.log", "w") as log:
            server = subprocess.Popen(
                ["bash", "-ec", text],
                cwd=self.folder,
                env={**self.environment, **environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            self._wait(server)
            yield
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(30)

    def _wait(self, server: subprocess.Popen) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self.uri}/health", timeout=2).close()
                return
            said = (self.folder / "server.log").read_text()
            assert server.poll() is None and time.monotonic() < deadline, said
            time.sleep(0.2)


@pytest.fixture(scope="module")
def machine(tmp_path_factory) -> Iterator[Machine]:
    pytest.importorskip("psycopg2", reason="pip install -r requirements-server.txt")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("apt-get install postgresql")
    machine = Machine(tmp_path_factory.mktemp("server"), found[-1].parent)
    user = _unprivileged(machine)
    start = "initdb -D data -A trust -U postgres -N && pg_ctl -D data -w -l log -o '{}' start"
    # What a crash would cost is nothing here.
    options = f"-k {machine.sockets} -c listen_addresses= -c fsync=off"
    database = {"cwd": machine.sockets, "env": machine.environment, **user}
    subprocess.run(["bash", "-ec", start.format(options)], check=True, timeout=60, **database)
    try:
        machine.run(block("createuser"), PGUSER="postgres")
        yield machine
    finally:
        subprocess.run(["pg_ctl", "-D", "data", "-m", "immediate", "stop"], check=True, **database)
        shutil.rmtree(machine.sockets)


def _unprivileged(machine: Machine) -> dict[str, object]:
    """Makes the database's folder; the user that it is for, since PostgreSQL refuses root."""
    machine.sockets.mkdir(mode=0o700)
    if os.getuid():
        return {}
    shutil.chown(machine.sockets, "postgres", "postgres")
    return {"user": "postgres", "group": "postgres", "extra_groups": []}


@pytest.fixture(scope="module")
def server(machine) -> Iterator[Machine]:
    with machine.serving(machine.text_of("mlflow server")):
        yield machine


@pytest.fixture(scope="module")
def make_desk(tmp_path_factory, server, stripes) -> Callable[..., Project]:
    """Makes a machine that has the project, the data, and the server's address alone."""

    def make(name: str) -> Project:
        folder = tmp_path_factory.mktemp(name)
        project = Project(folder / "pose")
        project.store = server.uri
        shutil.copytree(stripes, project.folder / "dataset")
        return project

    return make


def at(desk: Project) -> dict[str, str]:
    """The environment of a desk."""
    home = desk.folder.parent / "home"
    home.mkdir(exist_ok=True)
    return {
        "HOME": str(home),
        "POSE_CACHE": str(home / "cache"),
        "MLFLOW_TRACKING_URI": desk.store,
    }


@pytest.fixture(scope="module")
def trained(make_desk) -> Project:
    """A desk at which six seeds were trained at once, each a run of its own."""
    desk = make_desk("trained")
    desk.said = []
    commands = [desk.train_command(run_name=f"team_{n}", seeds=n, **SMALL) for n in SEEDS]
    processes = [desk.start(*command, **at(desk)) for command in commands]
    for process in processes:
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, err
        desk.said.append(out + err)
    return desk


def vote(desk: Project, name: str) -> Path:
    teams = ",".join(f"team_{n}" for n in SEEDS)
    desk.run(
        sys.executable, "-m", "entrypoints.ensemble", "--run", teams, "--out_path", name, **at(desk)
    )
    return desk.folder / name


def test_six_seeds_at_once_are_six_runs_and_six_models(trained):
    assert [
        line for said in trained.said for line in said.splitlines() if "Traceback" in line
    ] == []
    parents = trained.runs("train")
    assert {parent.data.tags["run"] for parent in parents} == {f"team_{n}" for n in SEEDS}
    assert all(parent.info.status == "FINISHED" for parent in parents)
    versions = trained.client().search_model_versions("name = 'pose'")
    assert sorted(int(found.version) for found in versions) == [1, 2, 3, 4, 5, 6]
    for parent in parents:
        (child,) = trained.children(parent)
        points = trained.client().get_metric_history(child.info.run_id, "val_f1")
        assert [point.step for point in points] == [1, 2]


def test_a_machine_with_the_address_alone_votes_the_same(trained, make_desk):
    there = vote(make_desk("elsewhere"), "there.csv")
    assert filecmp.cmp(vote(trained, "here.csv"), there, shallow=False)


def test_a_run_goes_on_at_another_desk(server, make_desk):
    here, there = make_desk("here"), make_desk("there")
    long = {**SMALL, "num_epochs": 12, "seeds": "76"}
    process = here.start(*here.train_command(**long), **at(here))
    here.wait_for_epochs(process, "ensemble_1", 76, 2)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE)
    words = " ".join(f"-P {name}={value}" for name, value in long.items() if name != "run")
    text = server.text_of("-e train").replace("-P run=ensemble_1", f"-P run=ensemble_1 {words}", 1)
    said = server.run(text, there.folder, **at(there))
    assert "continuing the unfinished training" in said
    assert "continued after epoch" in said
    assert (there.folder / "predictions.csv").exists()
    (parent,) = there.runs("train", run="ensemble_1")
    assert parent.data.tags["is_complete"] == "true"


def test_a_store_of_one_machine_is_moved_there(machine, stripes, tmp_path):
    alone = Project(tmp_path / "pose")
    shutil.copytree(stripes, alone.folder / "dataset")
    alone.run(*alone.train_command(**{**SMALL, "seeds": "76,100"}))
    vote = [sys.executable, "-m", "entrypoints.ensemble", "--run", "ensemble_1"]
    ours = alone.run(*vote)
    machine.run("createdb --owner mlflow moved", PGUSER="postgres")
    text = machine.text_of("scripts.move_store").replace(":///mlflow", ":///moved")
    text = text.replace(str(machine.folder), str(tmp_path))
    assert "moved" in machine.run(text, alone.folder)

    moved = Machine(tmp_path, Path())
    moved.environment |= {"PATH": machine.environment["PATH"], "PGHOST": str(machine.sockets)}
    desk = Project(tmp_path / "desk")
    desk.store = moved.uri
    with moved.serving(moved.text_of("mlflow server").replace(":///mlflow", ":///moved")):
        shutil.rmtree(alone.folder / "mlruns")
        theirs = desk.run(*vote, **at(desk))
        # Seeds are added to the run that was moved.
        more = {**SMALL, "seeds": "76,100", "add_seeds": "123"}
        said = desk.run(*desk.train_command(dataset=alone.folder / "dataset", **more), **at(desk))
    name = "predictions.csv"
    assert filecmp.cmp(alone.folder / name, desk.folder / name, shallow=False)
    assert scores_in(ours) == scores_in(theirs) != []
    assert "seed 123: val_f1" in said
    again = machine.text_of("scripts.move_store").replace(":///mlflow", ":///moved")
    with pytest.raises(AssertionError, match="database must be new, found"):
        machine.run(again, alone.folder)


def scores_in(said: str) -> list[str]:
    return [line for line in said.splitlines() if "val_f1" in line]


def test_what_the_page_backs_up_is_brought_back(machine, trained, tmp_path):
    count = "psql --tuples-only --no-align --command 'SELECT count(*) FROM model_versions' "
    machine.run(machine.text_of("pg_dump"))
    machine.run("createdb --owner mlflow restored", PGUSER="postgres")
    text = machine.text_of("pg_restore").replace("--dbname mlflow", "--dbname restored")
    machine.run(text.replace(f"--directory {machine.folder}", f"--directory {tmp_path}"))
    assert machine.run(f"{count} restored") == machine.run(f"{count} mlflow") != "0\n"
    for version in trained.client().search_model_versions("name = 'pose'"):
        assert list(tmp_path.glob(f"artifacts/0/{version.run_id}/artifacts/pose_cnn.pth"))


def test_compose_starts_what_the_page_starts():
    services = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]
    page = block("mlflow server")
    assert services["mlflow"]["command"] in page
    for name in ("MLFLOW_BACKEND_STORE_URI", "MLFLOW_ARTIFACTS_DESTINATION"):
        assert f"export {name}={services['mlflow']['environment'][name]}\n" in page
