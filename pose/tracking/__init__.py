"""The one package that speaks to MLflow; no object of MLflow's leaves it.

A run is a parent with a child run per seed, a vote is a run of its own; what they are called and
what they carry is decided here. Everything goes by explicit run ids, so that threads and other
processes can use it.
"""

from pose.tracking.contestants import FoundSide
from pose.tracking.exports import Exported
from pose.tracking.flavors import predictor_config
from pose.tracking.parents import RunRequest
from pose.tracking.runs import RunRecord
from pose.tracking.seeds import DataRecord, SeedRecord
from pose.tracking.spool import SPOOL, waiting_in
from pose.tracking.tasks import TaskRecord
from pose.tracking.tracker import Tracker, end_orphan
from pose.tracking.votes import VoteRecord

__all__ = [
    "SPOOL",
    "DataRecord",
    "Exported",
    "FoundSide",
    "RunRecord",
    "RunRequest",
    "SeedRecord",
    "TaskRecord",
    "Tracker",
    "VoteRecord",
    "end_orphan",
    "predictor_config",
    "waiting_in",
]
