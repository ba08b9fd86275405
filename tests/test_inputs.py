"""What people call an image, and the table that a model answers with."""

import base64
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pose_models import Combination, Framing, SeedEnsemble, build_model
from pose_models.decode import BadImageError, read_image
from pose_models.inputs import read_source, to_source
from pose_models.predictor import BATCH_SIZE, Predictor, PredictorConfig
from pose_models.pyfunc import ImageTable, PredictionError

LABELS = ("3", "left")
NAMES = ("three", "Left <b>")


@pytest.fixture(scope="module")
def files(stripes) -> list[Path]:
    return sorted((stripes / "test_images").iterdir())


def ensemble() -> SeedEnsemble:
    """Two networks that see different sizes and disagree on stripes."""
    torch.manual_seed(0)
    members = [
        build_model(name, LABELS, size) for name, size in (("simple_cnn", 32), ("pose_net", 24))
    ]
    for member in members:
        for parameter in member.parameters():
            parameter.data.mul_(1.5)
    return SeedEnsemble([member.eval() for member in members], Combination(rule="soft"))


DECODINGS = ((Framing(size=32), True), (Framing(size=24), False))


@pytest.fixture(scope="module")
def table() -> ImageTable:
    config = PredictorConfig(labels=LABELS, names=NAMES, decodings=DECODINGS)
    return ImageTable(Predictor(ensemble(), config))


def forms_of(path: Path) -> dict[str, object]:
    """One image in every form that keeps all of its pixels."""
    data = path.read_bytes()
    text = base64.b64encode(data).decode()
    return {
        "path": path,
        "text of a path": str(path),
        "bytes": data,
        "bytearray": bytearray(data),
        "base64": text,
        "base64 in lines": base64.encodebytes(data).decode(),
        "data URL": f"data:image/jpeg;base64,{text}",
        "b64": {"b64": text},
    }


def pixel_forms_of(path: Path) -> dict[str, object]:
    image = Image.open(path)
    pixels = np.asarray(image)
    return {
        "Pillow": image,
        "HWC": pixels,
        "CHW": pixels.transpose(2, 0, 1),
        "float": pixels / 255,
        "float32 CHW": torch.from_numpy(pixels.transpose(2, 0, 1).copy()) / 255,
        "int64": pixels.astype(np.int64),
        "tensor": torch.from_numpy(pixels.copy()),
        "RGBA": np.dstack([pixels, pixels[:, :, :1]]),
        "list": pixels.tolist(),
    }


def test_every_form_of_a_file_has_the_pixels_that_the_cache_has(files):
    expected = read_image(files[0].read_bytes(), 24)
    for name, image in forms_of(files[0]).items():
        found = read_source(to_source(image), Framing(size=24), True)
        np.testing.assert_array_equal(found, expected, err_msg=name)


def test_every_form_of_pixels_is_resized_as_files_are(files):
    png = io.BytesIO()
    Image.open(files[0]).save(png, "PNG")
    expected = read_image(png.getvalue(), 24)
    for name, image in pixel_forms_of(files[0]).items():
        found = read_source(to_source(image), Framing(size=24), True)
        np.testing.assert_array_equal(found, expected, err_msg=name)


def test_grey_arrays_become_rgb():
    gray = np.arange(30, dtype=np.uint8).reshape(5, 6)
    for image in (gray, gray[:, :, None], gray[None]):
        rgb = to_source(image)
        np.testing.assert_array_equal(rgb, np.dstack([gray] * 3))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "found NoneType"),
        (7, "found int"),
        ("no such file.jpg", "a path or base64 text was expected, found 'no such file.jpg'"),
        ("", "found ''"),
        (Path("missing.jpg"), "'missing.jpg': No such file"),
        (np.zeros((2, 2, 2, 3, 3)), r"found \(2, 2, 2, 3, 3\)"),
        (np.zeros((5, 5, 2)), r"\(H, W, 3\) or \(3, H, W\) was expected, found \(5, 5, 2\)"),
        (np.zeros((0, 5, 3)), "found"),
        (np.full((4, 4, 3), 255.0), r"floats in 0..1 were expected, found 255 to 255"),
        (np.full((4, 4, 3), np.nan), "found nan"),
        (np.full((4, 4, 3), -1), r"whole numbers in 0..255"),
        (np.full((4, 4, 3), 256), r"found 256 to 256"),
        (np.full((4, 4, 3), True), "found bool"),
        ([[1, 2], [3]], "unequal"),
        ([["a", "b"]], "numbers"),
    ],
)
def test_what_is_no_image_is_refused_in_one_sentence(image, message):
    with pytest.raises(BadImageError, match=message) as error:
        to_source(image)
    assert "\n" not in str(error.value)


def test_a_table_has_a_row_per_image_of_any_kind_and_size(table, files):
    mixture = [
        *forms_of(files[0]).values(),
        *pixel_forms_of(files[1]).values(),
        np.zeros((7, 90, 3), np.uint8),
    ]
    answer = table.predict(mixture)
    assert list(answer) == ["label", "name", "confidence", "p_3", "p_left", "disagreement"]
    assert len(answer) == len(mixture)
    assert set(answer["label"]) <= set(LABELS)
    probs = answer[["p_3", "p_left"]].to_numpy()
    np.testing.assert_allclose(probs.sum(axis=1), 1)
    np.testing.assert_array_equal(answer["confidence"], probs.max(axis=1))
    assert list(answer["name"]) == [NAMES[pred] for pred in probs.argmax(axis=1)]
    assert set(answer["disagreement"]) <= {0.0, 1.0}
    # The same file in eight forms.
    assert np.ptp(probs[:8], axis=0).max() < 1e-6


def test_an_ensemble_that_is_one_module_answers_as_its_members_do(files):
    """As one that was exported."""
    torch.manual_seed(0)
    whole = SeedEnsemble([build_model("simple_cnn", LABELS, 24).eval() for _ in range(2)])
    config = PredictorConfig(labels=LABELS, names=NAMES, decodings=((Framing(size=24), True),) * 2)
    one, members = (
        ImageTable(Predictor(model, config)).predict(files)
        for model in (torch.nn.Sequential(whole), whole)
    )
    assert list(one["label"]) == list(members["label"])
    np.testing.assert_allclose(one["p_left"], members["p_left"], atol=1e-2)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda data: data,
        lambda data: [data],
        lambda data: pd.Series([data]),
        lambda data: pd.DataFrame({"image": [data], "id": [1]}),
        lambda data: pd.DataFrame({"any": [data]}),
        lambda data: {"image": [data]},
        lambda data: np.array([data], dtype=object),
    ],
)
def test_images_come_alone_in_lists_and_in_tables(table, files, wrap):
    data = files[0].read_bytes()
    pd.testing.assert_frame_equal(table.predict(wrap(data)), table.predict([data]))


def test_batches_of_arrays(table):
    batch = np.random.default_rng(0).integers(0, 256, (3, 30, 20, 3), dtype=np.uint8)
    expected = table.predict(list(batch))
    for same in (batch, batch.transpose(0, 3, 1, 2), torch.from_numpy(batch), batch.tolist()):
        pd.testing.assert_frame_equal(table.predict(same), expected)
    assert len(table.predict(batch[0].tolist())) == 1
    assert len(table.predict(batch[0])) == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "an empty list"),
        ({"a": [b""], "b": [b""]}, "found 2 columns"),
        (pd.DataFrame({"a": [1], "b": [2]}), "one column of images .*, found a, b"),
        ([b"", b"x"], "image 1 cannot be read: an empty file"),
    ],
)
def test_a_wrong_request_is_refused_in_one_sentence(table, data, message):
    with pytest.raises(PredictionError, match=message) as error:
        table.predict(data)
    assert error.value.get_http_status_code() == 400
    # MLflow's server puts the request in front of a message.
    error.value.message = "Failed to predict data '...'"
    assert error.value.message.startswith("image") or error.value.message.startswith("a table")


def test_the_bad_one_of_many_images_is_named(table, files):
    data = files[0].read_bytes()
    images = [data] * (BATCH_SIZE + 5) + [data[: len(data) // 2]]
    with pytest.raises(PredictionError, match=f"image {len(images)} cannot be read"):
        table.predict(images)


def test_a_text_names_no_file_where_a_server_is_asked(table, files, monkeypatch):
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
    with pytest.raises(PredictionError, match="base64 text was expected"):
        table.predict([str(files[0])])


def test_answers_are_those_of_the_module_on_the_same_pixels(table, files):
    whole = ensemble()
    images = [path.read_bytes() for path in files]
    found = table.predict(images)[["p_3", "p_left"]].to_numpy()
    probs = []
    for member, size in zip(whole.members, (32, 24), strict=True):
        pixels = np.stack([read_image(data, size) for data in images])
        probs.append(member(torch.from_numpy(pixels)).softmax(dim=1).detach().numpy())
    np.testing.assert_allclose(found, np.mean(probs, axis=0), atol=1e-5)
