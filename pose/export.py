"""Finished models as ONNX and as torch.export's programs, checked against torch before they leave.

The whole module goes, with its preprocessing: images of any number and size in, logits out.
"""

import dataclasses
import importlib.util
import io
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from pose import metrics
from pose.data.folder import Dataset, read_dataset, read_test_images
from pose.data.shards import ImageFile, read_file
from pose.display import Display
from pose.ensembling.held_out import MIN_ROWS
from pose.ensembling.joined import join
from pose.errors import InputError, one_line
from pose.files import make_folder, writing
from pose.predictions import Predictions
from pose.tracking import Exported, TaskRecord
from pose_models import Framing
from pose_models.decode import BadImageError, read_image
from pose_models.predictor import PredictorConfig

# Real images that every export must answer as torch does.
NUM_CHECKED = 32
# Larger differences of a probability are no rounding.
TOLERANCE = 1e-3
# Images that the ranges of int8 are taken from, and labelled ones that its loss is measured on.
NUM_CALIBRATION = 128
MAX_SCORED = 1000
PACKAGES = ("onnx", "onnxruntime", "onnxscript")
BATCH = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images:
    """Real images for an export, `(N, 3, H, W)` uint8.

    Attributes:
        checked: batches whose answers are compared, of several sizes where any is taken.
        is_any_size: whether it is: members that pad or crop compute with whole numbers of pixels,
            which no exporter writes down.
        calibration: for int8, none of them scored; None where int8 is not asked for.
        scored, labels: for int8's loss of F1.
        rows_text: what is scored, for people.
    """

    checked: tuple[Tensor, ...]
    is_any_size: bool = True
    calibration: Tensor | None = None
    scored: Tensor | None = None
    labels: np.ndarray | None = None
    rows_text: str = ""


# The logits of a batch.
Run = Callable[[Tensor], np.ndarray]


def check_packages(formats: Sequence[str]) -> None:
    """Refuse ONNX where its packages are missing, before anything is done.

    Raises:
        InputError: they are.
    """
    if not set(formats) & {"onnx", "int8"}:
        return
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"formats onnx and int8 need {', '.join(missing)} installed: "
            "pip install -r requirements-onnx.txt"
        )


def gather_images(
    folder: Path,
    config: PredictorConfig,
    members: Sequence[Predictions],
    formats: Sequence[str],
) -> Images:
    """Images of a data folder to check an export with, and for int8 what it takes besides.

    Args:
        members: predictions of the rows that each member did not train on.

    Raises:
        InputError: images are missing.
    """
    files = _files_of(folder)
    obeys = config.decodings[0][1]
    # As they were scored, and at the sizes that a stranger would send.
    framings = [framing for framing, _ in config.decodings[:1]]
    canvas = framings[0].canvas
    is_any_size = all(framing.rule == "resize" for framing, _ in config.decodings)
    if is_any_size:
        framings += [Framing(size=canvas + canvas // 2), Framing(size=max(8, canvas // 2))]
    picked = _spread(files, NUM_CHECKED)
    checked = tuple(_read(picked, framing, obeys) for framing in framings)
    if "int8" not in formats:
        return Images(checked=checked, is_any_size=is_any_size)
    found = _images_for_int8(read_dataset(folder), members, framings[0], obeys)
    return dataclasses.replace(found, checked=checked, is_any_size=is_any_size)


def _files_of(folder: Path) -> list[ImageFile]:
    """Test images, and labelled ones where these are too few."""
    try:
        tests = list(read_test_images(folder).values())
    except InputError:
        tests = []
    if len(tests) >= NUM_CHECKED:
        return tests
    return [*tests, *read_dataset(folder).files[: NUM_CHECKED - len(tests)]]


def _spread(items: Sequence[Any], num: int) -> list[Any]:
    """At most `num` of `items`, evenly spread."""
    picked = np.linspace(0, len(items) - 1, min(num, len(items))).astype(int)
    return [items[index] for index in picked]


def _read(files: Sequence[ImageFile], framing: Framing, obeys: bool) -> Tensor:
    pixels = []
    for path in files:
        try:
            pixels.append(np.ascontiguousarray(read_image(read_file(path), framing, obeys)))
        except (OSError, BadImageError) as error:
            raise InputError(f"{path} must be a readable image, found: {one_line(error)}") from None
    return torch.from_numpy(np.stack(pixels))


def _images_for_int8(
    dataset: Dataset, members: Sequence[Predictions], framing: Framing, obeys: bool
) -> Images:
    if not members:
        raise InputError("int8 needs the validation predictions of the model's members, found none")
    rows = join({str(number): own for number, own in enumerate(members)})
    shared = rows.shared()
    is_held_out = len(shared.ids) >= MIN_ROWS
    file_of = dict(zip(dataset.ids, dataset.files, strict=True))
    label_of = dict(zip(rows.ids, rows.labels.tolist(), strict=True))
    known = [image_id for image_id in (shared if is_held_out else rows).ids if image_id in file_of]
    scored = _spread(known, min(MAX_SCORED, max(1, len(file_of) // 2)))
    rest = [image_id for image_id in dataset.ids if image_id not in set(scored)]
    calibration = _spread(rest, NUM_CALIBRATION)
    if not scored or not calibration:
        raise InputError(
            f"int8 needs labelled images to take its ranges from, found none in {dataset.folder}"
        )
    who = "no member" if is_held_out else "not every member"
    return Images(
        checked=(),
        calibration=_read([file_of[own] for own in calibration], framing, obeys),
        scored=_read([file_of[own] for own in scored], framing, obeys),
        labels=np.array([label_of[own] for own in scored]),
        rows_text=f"{len(scored)} labelled rows that {who} trained on",
    )


def file_of(name: str) -> str:
    """What the file of a format is called."""
    return _FILES[name]


def export_all(
    model: nn.Module,
    formats: Sequence[str],
    images: Images,
    folder: Path,
    display: Display,
) -> list[Exported]:
    """The model in each format as a file in `folder`, checked against torch.

    Args:
        model: in evaluation mode on the CPU.

    Raises:
        InputError: it cannot be exported, or the export answers otherwise than torch.
    """
    check_packages(formats)
    make_folder(folder)
    side = images.checked[0].shape[-1]
    if not images.is_any_size:
        display.say(f"images must be {side} x {side}: only framing=resize is traced for any size")
    program = _program(model, side, is_any_size=images.is_any_size)
    expected = [_logits_of(model)(batch) for batch in images.checked]
    found = []
    for name in formats:
        started = time.monotonic()
        path = folder / _FILES[name]
        with (
            writing(path),
            tempfile.TemporaryDirectory(suffix=".partial", prefix=".", dir=folder) as staging,
        ):
            # Only what is whole, and answers as it should, takes its place.
            partial = Path(staging, path.name)
            run = _WRITERS[name](program, partial, images)
            exported = _checked(name, partial, run, images, expected)
            if name == "int8":
                exported = _scored(exported, model, run, images)
            os.replace(partial, path)
        exported = dataclasses.replace(exported, path=path)
        found.append(exported)
        display.say(f"{exported}, {time.monotonic() - started:.1f} s")
    return found


def _program(model: nn.Module, side: int, *, is_any_size: bool) -> ExportedProgram:
    """The program for any number of images, of any size or of `side` alone."""
    # Another size than the network's own, or the resize would be traced away.
    height, width = (side + 10, side + 20) if is_any_size else (side, side)
    example = torch.zeros((2, 3, height, width), dtype=torch.uint8)
    sizes = {2: Dim.DYNAMIC, 3: Dim.DYNAMIC} if is_any_size else {}
    try:
        with torch.no_grad():
            return torch.export.export(
                model, (example,), dynamic_shapes=({0: Dim.DYNAMIC, **sizes},)
            )
    # torch passes on whatever a network's code raises while it is traced.
    except Exception as error:
        raise InputError(
            "model must be one that torch.export can trace with any number of images, found: "
            f"{one_line(error)}"
        ) from error


def _logits_of(module: Callable[[Tensor], Tensor]) -> Run:
    def run(images: Tensor) -> np.ndarray:
        with torch.inference_mode():
            return np.concatenate([module(part).numpy() for part in images.split(BATCH)])

    return run


def _write_pt2(program: ExportedProgram, path: Path, images: Images) -> Run:
    # In memory first: torch ends the process where a disk is full.
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    path.write_bytes(buffer.getbuffer())
    return _logits_of(torch.export.load(path).module())


def _write_onnx(program: ExportedProgram, path: Path, images: Images) -> Run:
    with warnings.catch_warnings():
        # Of the exporter about its own future.
        warnings.simplefilter("ignore")
        written = torch.onnx.export(
            program, dynamo=True, input_names=["images"], output_names=["logits"], verbose=False
        )
    assert written is not None
    written.save(path)
    return _onnx_run(path)


def _onnx_run(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(images: Tensor) -> np.ndarray:
        parts = (session.run(None, {name: part.numpy()})[0] for part in images.split(BATCH))
        return np.concatenate(list(parts))

    return run


def _write_int8(program: ExportedProgram, path: Path, images: Images) -> Run:
    """Convolutions and matrix products in int8, ranges from the calibration images."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    assert images.calibration is not None
    batches = iter(images.calibration.split(BATCH))

    class Reader(CalibrationDataReader):  # type: ignore[misc] # has no annotations
        """The calibration images, batch by batch."""

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(batches, None)
            return None if batch is None else {"images": batch.numpy()}

    whole, prepared = (path.with_name(f"{kind}.onnx") for kind in ("whole", "prepared"))
    _write_onnx(program, whole, images)
    quant_pre_process(str(whole), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(path),
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "MatMul", "Gemm"],
        per_channel=True,
    )
    for file in (whole, prepared):
        file.unlink()
    return _onnx_run(path)


_FILES = {"onnx": "model.onnx", "pt2": "model.pt2", "int8": "model_int8.onnx"}
_WRITERS = {"onnx": _write_onnx, "pt2": _write_pt2, "int8": _write_int8}


def _softmax(logits: np.ndarray) -> np.ndarray:
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    probs: np.ndarray = odds / odds.sum(axis=1, keepdims=True)
    return probs


def _checked(
    name: str, path: Path, run: Run, images: Images, expected: Sequence[np.ndarray]
) -> Exported:
    """What the export answers, held against torch; int8 may differ, and its loss is measured."""
    answers = [run(batch) for batch in images.checked]
    differences = [
        float(np.abs(_softmax(one) - _softmax(other)).max())
        for one, other in zip(answers, expected, strict=True)
    ]
    if name != "int8" and not max(differences) <= TOLERANCE:
        raise InputError(
            f"{name} must answer as torch does, found probabilities that differ by "
            f"{max(differences):.3g} on {NUM_CHECKED} images: nothing is recorded"
        )
    equal = [
        (one.argmax(axis=1) == other.argmax(axis=1)).sum()
        for one, other in zip(answers, expected, strict=True)
    ]
    return Exported(
        format=name,
        path=path,
        max_difference=max(differences),
        num_equal=int(sum(equal)),
        num_checked=sum(len(own) for own in expected),
        num_images=len(expected[0]),
    )


def _scored(exported: Exported, model: nn.Module, run: Run, images: Images) -> Exported:
    assert images.scored is not None and images.labels is not None
    before, after = (
        metrics.f1_of(answer(images.scored), images.labels) for answer in (_logits_of(model), run)
    )
    return dataclasses.replace(
        exported, f1_before=before, f1_after=after, rows_text=images.rows_text
    )


def record_exports(
    record: TaskRecord, exported: Sequence[Exported], model: nn.Module, config: PredictorConfig
) -> dict[str, str]:
    """Log the exports with their checks; the address of each logged model by format."""
    return {own.format: record.log_exported(own, model, config) for own in exported}
