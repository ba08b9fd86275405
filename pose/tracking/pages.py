"""Addresses of MLflow's pages."""

import urllib.parse

from pose.tracking.store import Store


def seeds_page(store: Store, experiment_id: str, parent_run_id: str) -> str:
    """Address of the page that compares the seeds of a run, in charts, best seed first.

    Sorted by anything but time, MLflow's page shows children as rows of their own; in its usual
    order they stay folded below their parent and out of the charts.
    """
    base = _without_password(store.uri) if store.uri.startswith("http") else "http://127.0.0.1:5000"
    query = urllib.parse.urlencode(
        {
            "workflowType": "machine_learning",
            "searchFilter": f"tags.parent_run_id = '{parent_run_id}'",
            "orderByKey": "metrics.`best_val_f1`",
            "orderByAsc": "false",
            "compareRunsMode": "CHART",
        },
        quote_via=urllib.parse.quote,
    )
    return f"{base}/#/experiments/{experiment_id}/runs?{query}"


def artifact_uri(store: Store, run_id: str, name: str) -> str:
    """Where an artifact of a run lies; a path where the store is on this machine."""
    uri = f"{store.client.get_run(run_id).info.artifact_uri}/{name}"
    return uri.removeprefix("file://")


def _without_password(uri: str) -> str:
    parts = urllib.parse.urlsplit(uri)
    host = parts.netloc.rpartition("@")[2]
    return urllib.parse.urlunsplit(parts._replace(netloc=host)).rstrip("/")
