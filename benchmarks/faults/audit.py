"""What a run left on disk and in MLflow, and how it differs from the undisturbed run."""

import csv
import dataclasses
import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import mlflow
import torch
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from torch import Tensor

from pose.config import Recipe
from pose.seeds import folder as seed_folder

# Columns and metrics that differ between two runs of the same.
TIMING = ("epoch_seconds", "images_per_second", "heartbeat")
# Of runs that `mlflow run` began, and of those in a git work tree: tags that say so.
SURROUNDINGS = ("mlflow.project.", "mlflow.source.git.", "mlflow.gitRepoURL")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeedFacts:
    """What a seed left.

    Attributes:
        files: SHA-256 of the files in its folder, by name.
        artifacts: of those in MLflow.
        metrics: `(step, value)` in the order they were logged, by name.
        runs, versions, models: how many child runs, registered versions and logged models it has.
    """

    files: dict[str, str]
    artifacts: dict[str, str]
    weights: dict[str, Tensor]
    registered_weights: dict[str, Tensor]
    history: list[dict[str, str]]
    texts: dict[str, str]
    metrics: dict[str, list[tuple[int, float]]]
    params: dict[str, str]
    tags: set[str]
    version_tags: set[str]
    status: str
    stop_reason: str
    num_data_inputs: int
    runs: int
    versions: int
    models: int

    def differences(self, other: "SeedFacts") -> Iterator[str]:
        """How it differs from `other`, the same seed of the undisturbed run."""
        for name in ("runs", "versions", "models", "num_data_inputs", "status", "stop_reason"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                yield f"{name}: {mine} instead of {theirs}"
        for name in ("files", "artifacts", "params", "metrics", "tags", "version_tags"):
            yield from _names(name, set(getattr(self, name)), set(getattr(other, name)))
        yield from self._other_results(other)
        yield from self._other_records(other)

    def _other_results(self, other: "SeedFacts") -> Iterator[str]:
        for name in ("weights", "registered_weights"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if set(mine) != set(theirs) or not all(torch.equal(mine[k], theirs[k]) for k in theirs):
                yield f"other {name}"
        if self.history != other.history:
            yield f"another history of {len(self.history)} epochs"
        for name, text in other.texts.items():
            if self.texts[name] != text:
                yield f"another {name}"

    def _other_records(self, other: "SeedFacts") -> Iterator[str]:
        for name in set(self.files) & set(self.artifacts):
            if self.files[name] != self.artifacts[name]:
                yield f"the artifact {name} is not the file of that name"
        for name in set(self.metrics) & set(other.metrics):
            mine, theirs = self.metrics[name], other.metrics[name]
            if [step for step, _ in mine] != [step for step, _ in theirs]:
                yield f"metric {name} at the steps {[step for step, _ in mine]}"
            elif not name.endswith(TIMING) and mine != theirs:
                yield f"metric {name} has other values"
        for name in set(self.params) & set(other.params):
            if self.params[name] != other.params[name]:
                yield f"param {name} is {self.params[name]}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What a run left.

    Attributes:
        parents: how many runs there are of its name.
        running: names of runs that MLflow thinks are at work.
        litter: files that nobody will ever ask for.
    """

    seeds: dict[int, SeedFacts]
    parents: int
    status: str
    metrics: set[str]
    params: set[str]
    tags: set[str]
    artifacts: set[str]
    running: list[str]
    litter: list[str]

    def differences(self, other: "Facts") -> list[str]:
        """How it differs from `other`, the undisturbed run; nothing: not at all."""
        found = []
        for seed, theirs in other.seeds.items():
            if seed not in self.seeds:
                found.append(f"seed {seed}: nothing of it")
                continue
            found += [f"seed {seed}: {text}" for text in self.seeds[seed].differences(theirs)]
        if self.parents != other.parents:
            found.append(f"{self.parents} runs instead of {other.parents}")
        if self.status != other.status:
            found.append(f"run {self.status}")
        for name in ("metrics", "params", "tags", "artifacts"):
            found += _names(f"run's {name}", getattr(self, name), getattr(other, name))
        if self.running:
            found.append(f"still RUNNING: {', '.join(self.running)}")
        if self.litter:
            found.append(f"left over: {', '.join(self.litter)}")
        return found


def _names(what: str, mine: set[str], theirs: set[str]) -> Iterator[str]:
    if missing := sorted(theirs - mine):
        yield f"{what} missing: {', '.join(missing)}"
    # What says how it went on is no difference.
    if extra := sorted(mine - theirs - {"added_seeds"}):
        yield f"{what} too many: {', '.join(extra)}"


def read_facts(project: Path, run: str) -> Facts:
    """What `run` left in a project's folder.

    Raises:
        Exception: whatever cannot be read, as its library says it.
    """
    # A copy under a new name: MLflow keeps connections by address.
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copy(project / "mlflow.db", scratch)
        uri = f"sqlite:///{scratch}/mlflow.db"
        client = mlflow.MlflowClient(uri, uri)
        ids = [experiment.experiment_id for experiment in client.search_experiments()]
        runs = client.search_runs(ids, max_results=1000, order_by=["attributes.start_time ASC"])
        own = [one for one in runs if one.data.tags.get("run") == run]
        parents = [one for one in own if one.data.tags["kind"] == "train"]
        children: dict[int, list[Run]] = {}
        for one in own:
            if one.data.tags["kind"] == "seed":
                children.setdefault(int(one.data.tags["seed"]), []).append(one)
        versions = [
            version
            for version in client.search_model_versions("name = 'pose'")
            if version.tags.get("run") == run
        ]
        reader = _SeedReader(client, project / "outputs" / run, ids)
        parent = parents[-1]
        return Facts(
            seeds={
                seed: reader.read(seed, found, versions) for seed, found in sorted(children.items())
            },
            parents=len(parents),
            status=parent.info.status,
            metrics=set(parent.data.metrics),
            params=set(parent.data.params) - _params_of_mlflow(parent),
            tags=_own_tags(parent),
            artifacts={item.path for item in client.list_artifacts(parent.info.run_id)},
            # A command that was killed before it recorded anything has no tags.
            running=[one.info.run_name for one in runs if one.info.status == "RUNNING"],
            litter=_litter(project),
        )


def _params_of_mlflow(parent: Run) -> set[str]:
    """The command's parameters that `mlflow run` recorded and that no run has of itself."""
    is_of_mlflow = "mlflow.project.entryPoint" in parent.data.tags
    # Seeds are no parameter of a run, but its tag.
    own = {field.name for field in dataclasses.fields(Recipe)} - {"seeds"}
    own |= {"recipe", "device", "precision", "threads"}
    return set(parent.data.params) - own if is_of_mlflow else set()


def _own_tags(run: Run) -> set[str]:
    return {tag for tag in run.data.tags if not tag.startswith(SURROUNDINGS)}


class _SeedReader:
    def __init__(self, client: mlflow.MlflowClient, folder: Path, experiments: list[str]) -> None:
        self.client = client
        self.folder = folder
        self.models = client.search_logged_models(experiments, max_results=1000)

    def read(self, seed: int, runs: list[Run], versions: list[ModelVersion]) -> SeedFacts:
        folder, run = self.folder / f"seed_{seed}", runs[-1]
        own = [version for version in versions if version.tags["seed"] == str(seed)]
        with open(folder / seed_folder.HISTORY, newline="", encoding="utf-8") as handle:
            rows = list(csv.DictReader(handle))
        return SeedFacts(
            files={path.name: _sha256(path) for path in folder.iterdir()},
            artifacts=self._artifacts(run),
            weights=torch.load(folder / seed_folder.WEIGHTS, weights_only=True),
            registered_weights=self._registered(own),
            history=[{k: v for k, v in row.items() if k not in TIMING} for row in rows],
            texts={
                name: (folder / name).read_text(encoding="utf-8")
                for name in (seed_folder.CONFIG, seed_folder.VAL_PREDICTIONS)
            },
            metrics={
                name: [
                    (point.step, point.value)
                    for point in self.client.get_metric_history(run.info.run_id, name)
                ]
                for name in run.data.metrics
            },
            params=dict(run.data.params),
            tags=_own_tags(run),
            version_tags={tag for version in own for tag in version.tags},
            status=run.info.status,
            stop_reason=run.data.tags.get("stop_reason", ""),
            num_data_inputs=len(run.inputs.dataset_inputs) if run.inputs else 0,
            runs=len(runs),
            versions=sum(version.status == "READY" for version in own),
            models=sum(model.source_run_id == run.info.run_id for model in self.models),
        )

    def _artifacts(self, run: Run) -> dict[str, str]:
        root = Path((run.info.artifact_uri or "").removeprefix("file://"))
        names = [item.path for item in self.client.list_artifacts(run.info.run_id)]
        return {name: _sha256(root / name) for name in names}

    def _registered(self, versions: list[ModelVersion]) -> dict[str, Tensor]:
        if not versions:
            return {}
        uri = self.client.get_model_version_download_uri("pose", str(versions[-1].version))
        path = Path(uri.removeprefix("file://")) / "extra_files" / seed_folder.WEIGHTS
        weights: dict[str, Tensor] = torch.load(path, weights_only=True)
        return weights


def _litter(project: Path) -> list[str]:
    """What was begun and never finished, in the places that are ours."""
    found = [
        path
        for root in (project / "outputs", project / "cache")
        for path in root.rglob("*")
        if path.name.endswith(".partial") or path.name.startswith(".fetched-")
    ]
    found += project.glob(".mlflow.db.*.new*")
    return sorted(str(path.relative_to(project)) for path in found)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
