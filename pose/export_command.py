"""A registered model exported: its images found, its checks recorded in a run of its own."""

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pose.config import DataSetup, ExportSetup
from pose.data.folder import refuse_input
from pose.data.source import locate_dataset
from pose.display import Display
from pose.errors import InputError
from pose.export import check_packages, export_all, file_of, gather_images, record_exports
from pose.files import make_folder, refuse_foreign, write_text
from pose.stop import ending
from pose.tracking import Exported, FoundSide, Tracker
from pose.tracking.models import load_model, load_module

RECORD = "export.json"


def export_model(setup: ExportSetup, tracker: Tracker, display: Display) -> dict[str, str]:
    """Export a registered model into `out_dir` and into MLflow; its address by format.

    Raises:
        InputError: no such model, no images to check it with, or it answers otherwise than torch.
    """
    assert setup.model
    names = setup.names()
    check_packages(names)
    tracker.check_place()
    config = load_model(setup.model, "cpu").predictor.config
    module = load_module(setup.model).eval()
    out_dir = Path(setup.out_dir)
    refuse_input(out_dir, out_dir.absolute().parent, "out_dir")
    refuse_foreign(out_dir, (file_of(name) for name in names), RECORD, "out_dir")
    make_folder(out_dir)
    with tempfile.TemporaryDirectory() as staging:
        found = tracker.find_trained(setup.model, Path(staging))
        folder = _data_folder(setup, found)
        members = [
            tracker.fetch_val_predictions(member, Path(staging) / str(number))
            for number, member in enumerate(found.members if "int8" in names else ())
        ]
        images = gather_images(folder, config, members, names)
    exported = export_all(module, names, images, out_dir, display)
    tags = {"run": found.name, "model": setup.model, "formats": ",".join(names)}
    record = tracker.open_task("export", f"export_{found.name}"[:250], tags)
    with ending(record.finish):
        addresses = record_exports(record, exported, module, config)
        path = out_dir / RECORD
        write_text(path, _json(setup.model, exported, addresses))
        note = "\n".join(f"* {own}" for own in exported) + "\n"
        record.log(metrics={}, tags={}, note=note, files=[path])
    record.finish("FINISHED")
    return addresses


def _data_folder(setup: ExportSetup, found: FoundSide) -> Path:
    """The data folder that was named, else the one that the model was trained on.

    Raises:
        InputError: it is not on this machine.
    """
    if setup.dataset is not None:
        folder = locate_dataset(DataSetup(dataset=setup.dataset))
        if folder is not None:
            return folder
    elif found.dataset and os.path.isdir(found.dataset):
        return Path(found.dataset)
    raise InputError(
        "dataset must be given, to check the export on real images: the data folder "
        f"{setup.dataset or found.dataset or 'of this model'} is not on this machine"
    )


def _json(model: str, exported: Sequence[Exported], addresses: dict[str, str]) -> str:
    values = {
        "model": model,
        "exports": [
            {
                "format": own.format,
                "file": own.path.name,
                "logged": addresses[own.format],
                "rows": own.rows_text,
                **own.scores(),
            }
            for own in exported
        ],
    }
    return json.dumps(values, indent=1) + "\n"
