"""From an image of any size to the squares that a network sees."""

import csv
import io
import json
import sys

import mlflow
import numpy as np
import pytest
import torch
from PIL import Image
from project import Project
from torch import nn

from pose.config import Recipe, Setup
from pose.data.cache import open_cache
from pose.errors import InputError
from pose.named_runs import resolve_run
from pose.plan import make_plan
from pose.training.augment import PRESETS, augment_batch, sample_params, take_windows
from pose_models import Framing, ImageClassifier, build_model
from pose_models.decode import read_image
from pose_models.predictor import PredictorConfig
from pose_models.preprocess import Preprocess, high_pass

CROP = Framing(size=16, rule="crop", crop_from=40)
FIT = Framing(size=24, rule="fit")


def noise(height: int, width: int, n: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return torch.randint(0, 256, (n, 3, height, width), generator=generator, dtype=torch.uint8)


def png(image: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def test_fit_keeps_the_aspect_ratio_and_pads_with_the_mean_colour():
    canvas = FIT.frame(noise(10, 48))
    assert canvas.shape == (1, 3, 24, 24)
    assert canvas[0, :, 0, 0].tolist() == [124, 116, 104]
    is_padding = (canvas[0, 0] == 124) & (canvas[0, 1] == 116) & (canvas[0, 2] == 104)
    # 10 x 48 becomes 5 x 24.
    assert (~is_padding.all(dim=1)).sum() == 5
    assert not is_padding.all(dim=0).any()


def test_crop_keeps_the_scale_and_mirrors_what_is_missing():
    image = noise(30, 40)
    canvas = CROP.frame(image)
    assert torch.equal(canvas[..., 5:35, :], image)
    assert torch.equal(canvas[..., :5, :], image[..., :5, :].flip(2))
    assert torch.equal(canvas[..., 35:, :], image[..., -5:, :].flip(2))
    # Smaller than half of the canvas: mirrored more than once.
    assert torch.equal(CROP.frame(noise(4, 40))[..., 18:22, :], noise(4, 40))
    assert CROP.frame(noise(200, 90)).shape == (1, 3, 40, 40)


def test_squares_cover_the_canvas():
    assert CROP.views == tuple((top, left) for top in (0, 12, 24) for left in (0, 12, 24))
    assert Framing(size=40, rule="crop", crop_from=40).views == ((0, 0),)
    assert FIT.views == ((0, 0),)
    assert len(Framing(size=16, rule="crop", crop_from=4096).views) == 16


@pytest.mark.parametrize("framing", [CROP, FIT], ids=lambda framing: framing.rule)
@pytest.mark.parametrize("shape", [(30, 37), (64, 50), (9, 3)])
def test_files_and_tensors_are_framed_alike(framing, shape):
    image = noise(*shape)
    assert np.array_equal(read_image(png(image[0]), framing), framing.frame(image)[0].numpy())


def test_the_cache_of_one_framing_is_not_that_of_another(tmp_path):
    path = tmp_path / "1.png"
    path.write_bytes(png(noise(30, 24)[0]))
    pixels = {
        rule: open_cache([path], Framing(size=24, rule=rule, crop_from=24)).images[0]
        for rule in ("resize", "fit", "crop")
    }
    assert not torch.equal(pixels["resize"], pixels["fit"])
    assert torch.equal(pixels["crop"][:, :, 2:-3], FIT.frame(noise(30, 24))[0][:, :, 2:-3])
    # Without a framing, the key is the one of yesterday's caches.
    assert torch.equal(open_cache([path], 24).images[0], pixels["resize"])


def test_training_squares_are_pixels_of_the_canvas_from_all_over_it():
    canvases = CROP.frame(noise(40, 40)).expand(200, 3, 40, 40)
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(200, dtype=torch.int64)
    params = sample_params(PRESETS["none"], labels, torch.tensor([-1]), generator)
    params = take_windows(params, CROP, generator)
    squares = (augment_batch(canvases, params, 16) * 255).round().to(torch.uint8)
    lefts_tops = (params.crop[:, :2] * 40).round().int().tolist()
    for square, (left, top) in zip(squares, lefts_tops, strict=True):
        assert torch.equal(square, canvases[0, :, top : top + 16, left : left + 16])
    for axis in zip(*lefts_tops, strict=True):
        assert (min(axis), max(axis)) == (0, 24)


def test_a_prediction_is_the_mean_over_the_squares():
    model = build_model("simple_cnn", ("a", "b", "c"), CROP, high_pass=True).eval()
    images = noise(40, 40, n=2)
    single = Preprocess(16, high_pass=True).eval()
    with torch.inference_mode():
        squares = [images[..., y : y + 16, x : x + 16] for y, x in CROP.views]
        probs = [model.network(single(square)).softmax(dim=1) for square in squares]
        expected = torch.stack(probs).mean(dim=0)
        torch.testing.assert_close(model(images).softmax(dim=1), expected)
        model.train()
        assert next(model.preprocess.views(squares[0])).shape == (2, 3, 16, 16)


def test_edges_are_those_of_the_file_where_crops_are_taken():
    preprocess = Preprocess(CROP, high_pass=True)
    images = noise(40, 40, n=4)
    preprocess.fit_high_pass([images])
    squares = torch.cat([CROP.crop(images / 255, view) for view in CROP.views])
    expected = high_pass(squares).std(correction=0)
    assert float(preprocess.std[0, 3]) == pytest.approx(float(expected), rel=1e-4)


def test_the_edge_channel_counts_for_nothing_before_it_is_trained():
    name = "torchvision/resnet18"
    torch.manual_seed(0)
    plain = build_model(name, ("a", "b"), 32).eval()
    torch.manual_seed(0)
    with_edges = build_model(name, ("a", "b"), 32, high_pass=True).eval()
    with torch.inference_mode():
        torch.testing.assert_close(with_edges(noise(32, 32)), plain(noise(32, 32)))


def test_models_from_before_framings_stretch():
    model = ImageClassifier(Preprocess(12), nn.Flatten(), ("a",)).eval()
    expected = model(noise(20, 30))
    # As an unpickled one: what its class did not have then, it does not have.
    del model.preprocess.__dict__["_framing"]
    assert torch.equal(model(noise(20, 30)), expected)


def test_a_served_models_way_of_framing_is_written_and_read():
    config = PredictorConfig(
        labels=("a",), names=("a",), decodings=((CROP, True), (Framing(size=24), False))
    )
    assert PredictorConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    # As it was written before there were framings.
    old = config.to_dict() | {"decodings": [[24, False]]}
    assert PredictorConfig.from_dict(old).decodings == ((Framing(size=24), False),)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"framing": "zoom"}, "framing must be one of crop, fit, resize, got 'zoom'"),
        ({"framing": "crop", "crop_from": 64}, r"crop_from must be in .* \[96, 4096\], got 64"),
        ({"crop_from": 512}, "crop_from must go with framing crop, got framing resize"),
    ],
)
def test_what_cannot_be_framed_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Recipe(**settings)


def test_a_format_that_cannot_frame_is_refused():
    run = resolve_run(None, None, {"framing": "fit"})
    with pytest.raises(InputError, match="model_format must be pickle with framing fit, got pt2"):
        make_plan(run, Setup(model_format="pt2"))


def test_what_is_served_frames_as_what_was_scored(tmp_path, make_dataset):
    data = make_dataset(tmp_path / "data", num_per_class=30, size=40, num_test=20)
    project = Project(tmp_path / "pose")
    train = {
        "seed": 1, "num_epochs": 2, "image_size": 16, "framing": "crop", "crop_from": 48,
        "high_pass": "true", "augmentation": "none",
    }  # fmt: skip
    project.run(*project.train_command(dataset=data, **train))
    project.run(sys.executable, "-m", "entrypoints.ensemble", "--dataset", str(data))
    with open(project.folder / "predictions.csv", encoding="utf-8") as handle:
        voted = {row["id"]: row["label"] for row in csv.DictReader(handle)}
    mlflow.set_tracking_uri(project.store)
    model = mlflow.pytorch.load_model("models:/pose-ensemble/1").eval()
    with torch.inference_mode():
        for name, label in voted.items():
            image = Image.open(data / "test_images" / f"{name}.jpg")
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
            assert model.labels[int(model(pixels).argmax())] == label
