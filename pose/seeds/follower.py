"""One of the processes that train a seed behind the first: it neither validates nor records."""

import dataclasses
from multiprocessing.connection import Connection

from pose.device import keep_freed_memory
from pose.display import NoDisplay
from pose.errors import InputError, one_line
from pose.seeds.job import SeedJob
from pose.seeds.relay import GONE
from pose.seeds.train import begin, load_same_data
from pose.training.followers import follow


def follow_seed(link: Connection, job: SeedJob, dataset_digest: str) -> bool:
    """Train `job` with the process at the other end of `link`, for as long as that does.

    Args:
        dataset_digest: of the data there, which must be the data here.

    Returns:
        whether all went well here; the other end knows what did not.
    """
    keep_freed_memory()
    # The first process alone has the average, and validates it.
    recipe = dataclasses.replace(job.recipe, ema_decay=0.0)
    try:
        state, data, precision = begin(
            dataclasses.replace(job, recipe=recipe),
            load_same_data(job, dataset_digest, NoDisplay()),
        )
        follow(link, state, data, recipe, precision)
    except GONE:
        # It is over, or another process of the seed is gone: the first knows.
        return True
    except InputError as error:
        _say(link, "input", str(error))
        return False
    except Exception as error:
        _say(link, "bug", f"{type(error).__name__}: {one_line(error)}")
        return False
    return True


def _say(link: Connection, kind: str, text: str) -> None:
    # Nobody may be there to hear it any more.
    try:
        link.send((kind, text))
    except OSError:
        return
