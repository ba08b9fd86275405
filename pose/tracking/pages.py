"""Addresses of MLflow's pages."""

import json
import urllib.parse
from typing import Any

from pose.tracking.store import Store, StoreError

# Where MLflow's own pages keep a view that somebody shares, on the experiment.
VIEW_TAG = "mlflow.sharedViewState."
# The first charts of a comparison of seeds; MLflow sorts by name, the seconds before all others.
FIRST_CHARTS = ("val_f1", "train_f1", "val_loss", "train_loss", "val_acc", "train_acc")


def seeds_page(
    store: Store, experiment_id: str, parent_run_id: str, *, keeps_view: bool = True
) -> str:
    """Address of the page that compares the seeds of a run, in charts, best seed first.

    The view is kept with the experiment, as by the button "Share" of that page: it has the charts
    of the scores first. A store that takes no view gives the same page with MLflow's order.

    Args:
        keeps_view: whether the store is asked to take it.
    """
    base = _without_password(store.uri) if store.uri.startswith("http") else "http://127.0.0.1:5000"
    shown: dict[str, Any]
    if keeps_view and _keep_view(store, experiment_id, parent_run_id):
        shown = {"viewStateShareKey": parent_run_id}
    else:
        shown = {**_seeds_of(parent_run_id), "orderByAsc": "false"}
    query = urllib.parse.urlencode(
        {"workflowType": "machine_learning", **shown, "compareRunsMode": "CHART"},
        quote_via=urllib.parse.quote,
    )
    return f"{base}/#/experiments/{experiment_id}/runs?{query}"


def _keep_view(store: Store, experiment_id: str, parent_run_id: str) -> bool:
    """Keep what the page shows with the experiment; whether the store took it."""
    view = json.dumps({**_seeds_of(parent_run_id), **_charts()}, separators=(",", ":"))
    try:
        store.client.set_experiment_tag(experiment_id, f"{VIEW_TAG}{parent_run_id}", view)
    except StoreError:
        return False
    return True


def _seeds_of(parent_run_id: str) -> dict[str, Any]:
    """Which runs a page shows, and in which order.

    Sorted by anything but time, MLflow's page shows children as rows of their own; in its usual
    order they stay folded below their parent and out of the charts.
    """
    return {
        "searchFilter": f"tags.parent_run_id = '{parent_run_id}'",
        "orderByKey": "metrics.`best_val_f1`",
        "orderByAsc": False,
    }


def _charts() -> dict[str, Any]:
    """The charts of a comparison of seeds, as MLflow's page keeps them."""
    sections = {"Model metrics": "model", "time": "time", "System metrics": "system"}
    return {
        "compareRunSections": [
            {"uuid": uuid, "name": name, "display": True, "isReordered": True, "deleted": False}
            for name, uuid in sections.items()
        ],
        "compareRunCharts": [
            {
                "uuid": name, "metricKey": name, "type": "LINE", "metricSectionId": "model",
                "isGenerated": True, "deleted": False, "runsCountToCompare": 10,
                "selectedMetricKeys": [name], "lineSmoothness": 0, "scaleType": "linear",
                "xAxisKey": "step", "selectedXAxisMetricKey": "",
            }
            for name in FIRST_CHARTS
        ],
        "isAccordionReordered": True,
    }  # fmt: skip


def artifact_uri(store: Store, run_id: str, name: str) -> str:
    """Where an artifact of a run lies; a path where the store is on this machine."""
    uri = f"{store.client.get_run(run_id).info.artifact_uri}/{name}"
    return uri.removeprefix("file://")


def _without_password(uri: str) -> str:
    parts = urllib.parse.urlsplit(uri)
    host = parts.netloc.rpartition("@")[2]
    return urllib.parse.urlunsplit(parts._replace(netloc=host)).rstrip("/")
