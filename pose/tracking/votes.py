"""The record of a vote."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow.entities import LoggedModelInput

from pose.reports import card
from pose.tracking import packaging, pages, registry
from pose.tracking.deliveries import log_data
from pose.tracking.seeds import DataRecord, data_entity
from pose.tracking.store import NOTE_TAG, Store, shown_uri
from pose_models import SeedEnsemble
from pose_models.predictor import PredictorConfig

# What MLflow's databases keep of a description.
MAX_DESCRIPTION = 5000


class VoteRecord:
    """The run of a vote."""

    def __init__(self, store: Store, run_id: str) -> None:
        self._store = store
        self.run_id = run_id

    def log(
        self,
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
        note: str,
        files: Sequence[Path],
    ) -> None:
        """Record scores, members, description, and files as artifacts."""
        self._store.log_metrics(self.run_id, metrics)
        self._store.set_tags(self.run_id, {**tags, NOTE_TAG: note})
        for path in files:
            self._store.client.log_artifact(self.run_id, str(path))

    def log_setup(self, params: Mapping[str, Any], data: DataRecord, uris: Sequence[str]) -> None:
        """Record how is voted, on which images, and the models of the members that vote."""
        client = self._store.client
        run = client.get_run(self.run_id)
        missing = {key: value for key, value in params.items() if key not in run.data.params}
        self._store.log_params(self.run_id, missing)
        log_data(self._store, run, data_entity(data), "prediction")
        versions = (uri.removeprefix("models:/").rpartition("/") for uri in uris)
        found = [client.get_model_version(name, version) for name, _, version in versions]
        # By the source: a database keeps no other trace of a version's logged model. Versions from
        # before MLflow 3 have none.
        prefix = "models:/"
        sources = [own.source for own in found if own.source and own.source.startswith(prefix)]
        inputs = [LoggedModelInput(model_id=source.removeprefix(prefix)) for source in sources]
        client.log_inputs(self.run_id, models=inputs)

    def log_model(
        self,
        model: SeedEnsemble,
        config: PredictorConfig,
        extra_files: Sequence[Path],
        tags: Mapping[str, str],
        registry_name: str,
    ) -> int:
        """Log the ensemble and register it beside members of that name; returns the version.

        It becomes the champion where it scores as well as the one before.
        """
        model_id = packaging.log_model(
            self._store, self.run_id, model, config=config, extra_files=extra_files
        )
        if "val_f1" in tags:
            run = self._store.client.get_run(self.run_id)
            scores = {"ensemble_val_f1": float(tags["val_f1"])}
            self._store.log_model_metrics(run, model_id, scores)
        name = registry.ensemble_name(registry_name)
        version = packaging.register(self._store, name, self.run_id, model_id, tags)
        registry.crown(self._store, name, version, tags)
        return version

    def log_card(self, registry_name: str, version: int, write: Callable[[str, str], str]) -> None:
        """Record the model card as an artifact and as the version's description.

        Args:
            write: makes it from the address of the version and that of the store.
        """
        name = registry.ensemble_name(registry_name)
        uri = f"models:/{name}/{version}"
        store = shown_uri(self._store.uri)
        if store.startswith("sqlite:///"):
            # A file, which the reader's folder must not decide about.
            store = f"sqlite:///{Path(store.removeprefix('sqlite:///')).absolute()}"
        text = write(uri, store)
        self._store.client.log_text(self.run_id, text, card.FILE)
        self._store.client.update_model_version(
            name, str(version), description=text[:MAX_DESCRIPTION]
        )

    def artifact(self, name: str) -> str:
        """Where an artifact lies; a path where the store is on this machine."""
        return pages.artifact_uri(self._store, self.run_id, name)

    def finish(self, status: str, stop_reason: str = "") -> None:
        """End the run as `status`."""
        if stop_reason:
            self._store.set_tags(self.run_id, {"stop_reason": stop_reason})
        self._store.client.set_terminated(self.run_id, status)
