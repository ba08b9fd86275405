"""Exports answer as torch does, and what does not is not recorded."""

import importlib.util

import numpy as np
import pytest
import torch

from pose.config import ExportSetup, VoteSetup
from pose.display import NoDisplay
from pose.errors import InputError
from pose.export import Images, check_packages, export_all, gather_images
from pose.predictions import Predictions
from pose.tracking import Exported
from pose_models import Combination, Framing, SeedEnsemble, build_model
from pose_models.predictor import PredictorConfig

HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime", "onnxscript"))
FORMATS = ("pt2", "onnx", "int8") if HAS_ONNX else ("pt2",)
LABELS = ("0", "1")
# Of the exporters about their own future, and of MLflow about its own classes.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def make_ensemble(*names: str, rule: str = "resize") -> SeedEnsemble:
    torch.manual_seed(0)
    members = [build_model(name, LABELS, Framing(size=16, rule=rule)).eval() for name in names]
    return SeedEnsemble(members, Combination(rule="hard")).eval()


@pytest.fixture(scope="module")
def images(stripes) -> Images:
    config = PredictorConfig(labels=LABELS, names=LABELS, decodings=((Framing(size=16), True),) * 2)
    ids = tuple(map(str, range(55)))
    labels = np.arange(55) % 2
    known = Predictions(ids=ids, probs=np.full((55, 2), 0.5), class_labels=LABELS, labels=labels)
    return gather_images(stripes, config, [known], ("int8",))


@pytest.fixture(scope="module")
def exported(images, tmp_path_factory) -> dict[str, Exported]:
    folder = tmp_path_factory.mktemp("exported")
    model = make_ensemble("simple_cnn", "simple_cnn_v2")
    found = export_all(model, FORMATS, images, folder, NoDisplay())
    return {own.format: own for own in found}


def test_images_are_real_of_several_sizes_and_ranges_come_of_rows_that_are_not_scored(images):
    assert [tuple(own.shape) for own in images.checked] == [
        (32, 3, 16, 16), (32, 3, 24, 24), (32, 3, 8, 8)
    ]  # fmt: skip
    assert len({own.numpy().tobytes() for own in images.checked[0]}) == 32
    assert len(images.scored) == len(images.labels) == 30
    assert images.rows_text == "30 labelled rows that no member trained on"
    assert len(images.calibration) == 30
    scored = {own.numpy().tobytes() for own in images.scored}
    assert not scored & {own.numpy().tobytes() for own in images.calibration}


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "int8"])
def test_an_export_answers_as_torch_does_for_any_number_and_size(exported, name):
    own = exported[name]
    assert own.num_checked == 96 and own.num_images == 32
    assert own.max_difference < 1e-5
    assert own.num_equal == 96
    other = torch.randint(0, 256, (5, 3, 33, 71), dtype=torch.uint8)
    expected = make_ensemble("simple_cnn", "simple_cnn_v2")(other).detach().numpy()
    if name == "pt2":
        found = torch.export.load(own.path).module()(other).detach().numpy()
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(own.path, providers=["CPUExecutionProvider"])
        (found,) = session.run(["logits"], {"images": other.numpy()})
    np.testing.assert_allclose(np.exp(found), np.exp(expected), atol=1e-5)


@pytest.mark.skipif(not HAS_ONNX, reason="pip install -r requirements-onnx.txt")
def test_int8_is_smaller_and_says_what_it_costs(exported):
    own = exported["int8"]
    assert own.path.stat().st_size < exported["onnx"].path.stat().st_size / 2
    assert own.scores()["f1_loss"] == own.f1_before - own.f1_after
    assert "points on 30 labelled rows that no member trained on" in str(own)
    assert sorted(path.name for path in own.path.parent.iterdir()) == [
        "model.onnx", "model.pt2", "model_int8.onnx"
    ]  # fmt: skip


def test_a_framing_that_pads_is_exported_for_images_of_its_canvas(stripes, tmp_path):
    lines = []
    display = NoDisplay()
    display.say = lines.append
    config = PredictorConfig(
        labels=LABELS, names=LABELS, decodings=((Framing(size=16, rule="fit"), True),)
    )
    images = gather_images(stripes, config, [], ("pt2",))
    model = make_ensemble("simple_cnn", rule="fit")
    (own,) = export_all(model, ("pt2",), images, tmp_path, display)
    assert own.num_checked == own.num_equal == 32
    assert lines[0].startswith("images must be 16 x 16")


def test_an_export_that_answers_otherwise_is_refused(images, tmp_path, monkeypatch):
    class Fickle(torch.nn.Module):
        """Another answer where it is traced."""

        def forward(self, images):
            logits = images.float().mean(dim=(2, 3))[:, :2]
            return logits.flip(1) * 9 if torch.compiler.is_exporting() else logits

    with pytest.raises(InputError, match="pt2 must answer as torch does, found probabilities"):
        export_all(Fickle(), ("pt2",), images, tmp_path, NoDisplay())
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_has_no_room_leaves_what_was_there(images, tmp_path, small_files):
    (tmp_path / "model.pt2").write_text("an earlier one")
    model = make_ensemble("simple_cnn", "simple_cnn_v2")
    with pytest.raises(InputError, match=r"model\.pt2 must be written, found: disk full, "):
        export_all(model, ("pt2",), images, tmp_path, NoDisplay())
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]
    assert (tmp_path / "model.pt2").read_text() == "an earlier one"


def test_missing_packages_are_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_packages(("pt2",))
    with pytest.raises(InputError, match="need onnx, onnxruntime, onnxscript installed: pip ins"):
        check_packages(("pt2", "int8"))


def test_formats_are_checked_where_they_are_typed():
    assert ExportSetup(model="m", formats=" onnx, pt2,onnx").names() == ("onnx", "pt2")
    with pytest.raises(InputError, match="formats must be one of int8, onnx, pt2, got 'tflite'"):
        ExportSetup(model="m", formats="tflite")
    with pytest.raises(InputError, match="export must be one of int8, onnx, pt2, got 'h5'"):
        VoteSetup(export="h5")
