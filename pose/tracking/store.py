"""The tracking store: how it is reached, and the few questions that all records ask it."""

import contextlib
import functools
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.entities.model_registry import ModelVersion
from sqlalchemy import make_url
from sqlalchemy.exc import DBAPIError

from pose.config import typed
from pose.errors import InputError, one_line
from pose.files import is_alive, is_full, kind_of, locked
from pose.tracking.database import ensure_whole, has_experiment, knock

PARENT_TAG = "mlflow.parentRunId"
NOTE_TAG = "mlflow.note.content"
# How long a server may be silent.
ANSWER_SECONDS = 8


class StoreError(InputError):
    """The tracking store refused or did not answer.

    Attributes:
        error_code: MLflow's, empty where another library failed.
        is_away: a server that does not answer, or only says that it cannot now; later it may.
    """

    def __init__(self, uri: str, error: Exception, *, wish: str = "", advice: str = "") -> None:
        self.error_code = str(getattr(error, "error_code", ""))
        self.is_away = uri.startswith("http") and _is_passing(error)
        wish = wish or ("must answer" if self.is_away else "must do what it is asked")
        said = _innermost(error) if self.is_away else _said_by_database(error) or error
        reason = shown_uri(_full_disk(error) or one_line(said))
        super().__init__(f"the tracking store {shown_uri(uri)} {wish}, found: {reason}{advice}")


def _is_passing(error: Exception) -> bool:
    """Whether a failure over HTTP may pass by itself: no answer, or a server's own trouble."""
    code = getattr(error, "error_code", None)
    if code is not None:
        return code in ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")
    response = getattr(error, "response", None)
    if response is not None:
        return bool(response.status_code >= 500 or response.status_code == 429)
    # As those of requests and urllib3 are.
    return isinstance(error, OSError)


def _innermost(error: BaseException) -> BaseException:
    """What the system said, where it said something; the libraries around it repeat addresses."""
    found, inner = error, error.__cause__ or error.__context__
    while inner is not None:
        if type(inner).__module__.partition(".")[0] not in ("mlflow", "requests", "urllib3"):
            found = inner
        inner = inner.__cause__ or inner.__context__
    return found


def _full_disk(error: BaseException) -> str:
    """That a disk of this machine is full, and what found no room; empty where none is."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) and is_full(found):
            place = found.filename2 or found.filename
            return f"disk full, {place}" if place else "disk full, of the store or its artifacts"
        found = found.__cause__ or found.__context__
    return ""


def _said_by_database(error: BaseException) -> BaseException | None:
    """What a database said, without SQLAlchemy's advice and statement around it."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, DBAPIError) and found.orig is not None:
            return found.orig
        found = found.__cause__ or found.__context__
    return None


@contextlib.contextmanager
def store_errors(uri: str) -> Iterator[None]:
    """Turn every failure of MLflow in the block into a `StoreError`.

    MLflow passes on what SQLAlchemy, requests and the file system raise, so no list of types
    would be complete.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise StoreError(uri, error) from error


class _Client:
    """MLflow's client; any call that fails raises a `StoreError`."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        with store_errors(uri):
            self._client = mlflow.MlflowClient(tracking_uri=uri)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        call = getattr(self._client, name)

        @functools.wraps(call)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            with store_errors(self._uri):
                return call(*args, **kwargs)

        return guarded


class Store:
    """A tracking store, addressed by plain text, so that it can be opened in any process.

    Args:
        uri: of the store; default: what the environment names.
    """

    def __init__(self, uri: str | None = None) -> None:
        self.uri = uri or mlflow.get_tracking_uri()
        # Some of MLflow's calls know no other way to be told.
        if mlflow.get_tracking_uri() != self.uri:
            mlflow.set_tracking_uri(self.uri)
        # Setting up a database is news for MLflow's developers, not for whoever trains.
        logging.getLogger("alembic").setLevel(logging.WARNING)
        # What fails there is raised as well: it needs no traceback beside our line.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        # Bars for single small files would break the lines that training prints.
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        # MLflow would ask a silent server for twelve minutes; what fails waits in a spool instead.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(ANSWER_SECONDS))
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        self.client = _Client(self.uri)

    def current_experiment_id(self) -> str:
        """The experiment that the environment chose, else MLflow's default."""
        from mlflow.tracking.fluent import _get_experiment_id

        with store_errors(self.uri):
            experiment_id = _get_experiment_id()
        assert experiment_id is not None
        return experiment_id

    def context_tags(self) -> dict[str, str]:
        """Who works here and on which commit, as MLflow's own `start_run` would say."""
        from mlflow.tracking.context.registry import resolve_tags

        with store_errors(self.uri):
            return {key: str(value) for key, value in resolve_tags().items()}

    def check_experiment(self, experiment_id: str) -> None:
        """Refuse an experiment that is deleted, or whose artifacts would go where nothing is.

        Raises:
            InputError: it is in MLflow's trash, or its artifacts lie on this machine and the
                project has been moved since.
        """
        experiment = self.client.get_experiment(experiment_id)
        if experiment.lifecycle_stage != "active":
            raise InputError(
                f"the experiment {experiment.name} must be there to record in, found that it was "
                "deleted: bring it back with mlflow experiments restore --experiment-id "
                f"{experiment_id}, or name another (MLFLOW_EXPERIMENT_NAME)"
            )
        place = experiment.artifact_location or ""
        if "://" in place and not place.startswith("file://"):
            return
        root = Path(place.removeprefix("file://"))
        # The store keeps <project>/mlruns/<experiment> as it was called when it was made.
        if root.is_absolute() and not root.exists() and not root.parent.parent.exists():
            raise InputError(
                f"the artifacts of this store must lie in {root}, whose folder is gone: move the "
                "project back there, link that folder to this one (ln -s), or begin a new store "
                "(MLFLOW_TRACKING_URI=sqlite:///new.db)"
            )

    def first_of_copies(self, experiment_id: str) -> Path | None:
        """The store that this one was copied from, where that still has the artifacts of both."""
        if not self.uri.startswith("sqlite:///"):
            return None
        experiment = self.client.get_experiment(experiment_id)
        place = experiment.artifact_location or ""
        own = Path(os.path.realpath(make_url(self.uri).database or ""))
        first = Path(place.removeprefix("file://")).parent.parent / own.name
        if not os.path.isfile(first) or first.samefile(own):
            return None
        is_same = has_experiment(first, experiment_id, place, experiment.creation_time)
        return first if is_same else None

    def get_run(self, run_id: str) -> Run | None:
        """The run, or None where it is deleted."""
        try:
            run = self.client.get_run(run_id)
        except StoreError as error:
            # A text that can be no id names no run either.
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            return None
        return run if run.info.lifecycle_stage == "active" else None

    def search_runs(self, filter_string: str) -> list[Run]:
        """All runs that match, of every experiment, newest first, page by page."""
        experiments = [found.experiment_id for found in self.client.search_experiments()]
        found: list[Run] = []
        token = None
        while True:
            page = self.client.search_runs(
                experiments,
                filter_string,
                order_by=["attributes.start_time DESC"],
                max_results=1000,
                page_token=token,
            )
            found += page
            token = page.token
            if not token:
                return found

    def search_versions(self, filter_string: str) -> list[ModelVersion]:
        """All registered versions that match, page by page."""
        found: list[ModelVersion] = []
        token = None
        while True:
            page = self.client.search_model_versions(
                filter_string, max_results=1000, page_token=token
            )
            found += page
            token = page.token
            if not token:
                return found

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags in one call."""
        self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        """Record parameters as they are typed on the command line."""
        self.client.log_batch(
            run_id, params=[Param(key, typed(value)) for key, value in params.items()]
        )

    def log_metrics(
        self, run_id: str, metrics: Mapping[str, float], step: int = 0, *, at: int | None = None
    ) -> None:
        """Record metrics in one call; `at` is when they were measured, in ms, instead of now."""
        at = int(time.time() * 1000) if at is None else at
        self.client.log_batch(
            run_id, metrics=[Metric(key, float(value), at, step) for key, value in metrics.items()]
        )

    def log_model_metrics(
        self, run: Run, model_id: str, metrics: Mapping[str, float], *, at: int | None = None
    ) -> None:
        """Record metrics of a run and of a model that it logged, on the data of the run.

        Args:
            at: when they were measured, in ms, instead of now.
        """
        inputs = run.inputs.dataset_inputs if run.inputs else []
        data = inputs[0].dataset if inputs else None
        at = int(time.time() * 1000) if at is None else at
        self.client.log_batch(
            run.info.run_id,
            metrics=[
                Metric(
                    key,
                    float(value),
                    at,
                    0,
                    model_id=model_id,
                    dataset_name=data.name if data else None,
                    dataset_digest=data.digest if data else None,
                    run_id=run.info.run_id,
                )
                for key, value in metrics.items()
            ],
        )


def connect() -> Store:
    """The store that the environment names, ready for many processes.

    A new SQLite store is set up under a lock, since several processes that start on an empty one
    at once would break it; one whose setting up was cut short is set up again.

    Raises:
        InputError: the store cannot be reached.
    """
    uri = mlflow.get_tracking_uri()
    try:
        if uri.startswith("sqlite:") and _is_forgotten(uri):
            raise InputError("it names no file, as sqlite:///mlflow.db does")
        if not uri.startswith("sqlite:///"):
            knock(uri)
            store = Store(uri)
            store.client.search_experiments(max_results=1)
            return store
        # Links are followed: what a link to a disk that is to be filled leads to is made there.
        path = Path(os.path.realpath(make_url(uri).database or ""))
        if path.exists() and not path.is_file():
            raise InputError(f"{kind_of(path.stat().st_mode)} in its place")
        with locked(path.with_name(f".{path.name}.lock")):
            ensure_whole(path, lambda new: Store(new).client.search_experiments(max_results=1))
            knock(uri)
            store = Store(uri)
            store.client.search_experiments(max_results=1)
            store.client.search_registered_models(max_results=1)
            return store
    except Exception as error:
        # MLflow passes on what SQLAlchemy, requests and the file system raise; all of it means
        # that nothing can be recorded, and training untracked is no way out.
        cause = error.__cause__ if isinstance(error, StoreError) else error
        assert isinstance(cause, Exception)
        advice = "; set MLFLOW_TRACKING_URI or start the server"
        raise StoreError(uri, cause, wish="must be reachable", advice=advice) from error


def _is_forgotten(uri: str) -> bool:
    """Whether the address of a SQLite store is that of one in memory alone."""
    return make_url(uri).database in (None, "", ":memory:")


def shown_uri(uri: str) -> str:
    """A store's address without the password that it may hold."""
    return re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:***@", uri)


def process_tags() -> dict[str, str]:
    """What tells later whether the process that works on a run is still there."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": str(pid), "process": process_key(pid)}


def process_key(pid: int) -> str:
    """A text that no later process with the same number has; `gone` where there is no process."""
    if not is_alive(pid):
        return "gone"
    stat = Path(f"/proc/{pid}/stat")
    # Field 22 is the start time; the name in field 2 may hold spaces.
    started = stat.read_text().rpartition(")")[2].split()[19] if stat.exists() else ""
    return f"{pid}/{started}"


def is_dead(tags: Mapping[str, str]) -> bool:
    """Whether a run's tags name a process of this machine that is gone."""
    if tags.get("host") != socket.gethostname() or not tags.get("pid", "").isdigit():
        return False
    return tags.get("process") != process_key(int(tags["pid"]))
