"""The record of a command that has a run of its own: scores, tags, a description, files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from pose.tracking import exports, pages
from pose.tracking.exports import Exported
from pose.tracking.store import NOTE_TAG, Store
from pose_models.predictor import PredictorConfig


class TaskRecord:
    """The run of a comparison, and what the run of a vote shares with it."""

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
        """Record scores, tags, description, and files as artifacts."""
        self._store.log_metrics(self.run_id, metrics)
        self._store.set_tags(self.run_id, {**tags, NOTE_TAG: note})
        for path in files:
            self._store.client.log_artifact(self.run_id, str(path))

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record parameters as they are typed on the command line."""
        self._store.log_params(self.run_id, params)

    def log_exported(self, exported: Exported, model: nn.Module, config: PredictorConfig) -> str:
        """As `exports.log_exported`."""
        return exports.log_exported(self._store, self.run_id, exported, model, config)

    def artifact(self, name: str) -> str:
        """Where an artifact lies; a path where the store is on this machine."""
        return pages.artifact_uri(self._store, self.run_id, name)

    def finish(self, status: str, stop_reason: str = "") -> None:
        """End the run as `status`."""
        if stop_reason:
            self._store.set_tags(self.run_id, {"stop_reason": stop_reason})
        self._store.client.set_terminated(self.run_id, status)
