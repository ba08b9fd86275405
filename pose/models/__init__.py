"""The old address of `pose_models`, under which models registered before 0.2 were pickled.

They carry a copy of their code, but in this project's folder `pose` is the project: without this
they could not be loaded here. Nothing else imports it.
"""

import importlib
import pkgutil
import sys

import pose_models
from pose_models import *  # noqa: F403

for _module in pkgutil.iter_modules(pose_models.__path__):
    sys.modules[f"{__name__}.{_module.name}"] = importlib.import_module(
        f"pose_models.{_module.name}"
    )
