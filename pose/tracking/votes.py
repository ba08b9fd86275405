"""The record of a vote."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pose.tracking import packaging, pages, registry
from pose.tracking.store import NOTE_TAG, Store
from pose_models import SeedEnsemble
from pose_models.predictor import PredictorConfig


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

    def log_model(
        self,
        model: SeedEnsemble,
        config: PredictorConfig,
        extra_files: Sequence[Path],
        tags: Mapping[str, str],
        registry_name: str,
    ) -> int:
        """Log the ensemble and register it beside members of that name; returns the version."""
        model_id = packaging.log_model(
            self._store,
            self.run_id,
            model,
            config=config,
            extra_files=extra_files,
        )
        name = registry.ensemble_name(registry_name)
        return packaging.register(self._store, name, self.run_id, model_id, tags)

    def artifact(self, name: str) -> str:
        """Where an artifact lies; a path where the store is on this machine."""
        return pages.artifact_uri(self._store, self.run_id, name)

    def finish(self, status: str, stop_reason: str = "") -> None:
        """End the run as `status`."""
        if stop_reason:
            self._store.set_tags(self.run_id, {"stop_reason": stop_reason})
        self._store.client.set_terminated(self.run_id, status)
