"""The record of a vote."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow.entities import LoggedModelInput

from pose.reports import card
from pose.tracking import packaging, registry
from pose.tracking.deliveries import log_data
from pose.tracking.seeds import DataRecord, data_entity
from pose.tracking.store import shown_uri
from pose.tracking.tasks import TaskRecord
from pose_models import SeedEnsemble
from pose_models.predictor import PredictorConfig

# What MLflow's databases keep of a description.
MAX_DESCRIPTION = 5000


class VoteRecord(TaskRecord):
    """The run of a vote."""

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
