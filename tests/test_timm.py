"""timm's models by name, where timm is installed."""

import pytest
import torch

from entrypoints.train import list_models_like
from pose.config import Recipe, Setup
from pose.errors import InputError
from pose.named_runs import resolve_run
from pose.plan import make_plan
from pose.tracking.packaging import requirements
from pose_models import SeedEnsemble, build_model, check_model_name, for_inference, own_image_size

timm = pytest.importorskip("timm", reason="pip install -r requirements-timm.txt")
constants = pytest.importorskip("huggingface_hub").constants

LABELS = ("a", "b", "c")


def images(size: int = 40) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, size, size), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("high_pass", [False, True])
def test_a_model_of_timm_has_its_own_statistics(high_pass):
    model = build_model("timm/vit_tiny_patch16_224", LABELS, 32, high_pass=high_pass).eval()
    assert model.preprocess.mean.flatten()[:3].tolist() == [0.5, 0.5, 0.5]
    assert model.preprocess.std.flatten()[:3].tolist() == [0.5, 0.5, 0.5]
    assert model(images()).shape == (2, 3)


def test_it_is_as_fast_as_it_is_right():
    torch.manual_seed(0)
    model = build_model("timm/test_efficientnet", LABELS, 32)
    with torch.no_grad():
        # Statistics of its own, or nothing would be folded into the convolutions.
        for _ in range(3):
            model(images())
    model.eval()
    with torch.inference_mode():
        torch.testing.assert_close(for_inference(model)(images()), model(images()))


def test_it_votes_with_all_others():
    members = [build_model(name, LABELS, 32) for name in ("timm/test_efficientnet", "simple_cnn")]
    ensemble = SeedEnsemble(members).eval()
    assert ensemble(images()).shape == (2, 3)
    assert any(line.startswith("timm==") for line in requirements(ensemble))
    assert not any(line.startswith("timm") for line in requirements(members[1]))


def test_names_are_listed_and_checked():
    assert "timm/convnext_atto" in list_models_like("convnext_atto").splitlines()
    assert list_models_like("simple_cnn").splitlines() == ["simple_cnn", "simple_cnn_v2"]
    with pytest.raises(InputError, match="list_models must match .* got 'nonsense'"):
        list_models_like("nonsense")
    with pytest.raises(ValueError, match="one of timm's, such as .*convnext_atto.* got 'timm/conv"):
        check_model_name("timm/convnext_nonsense")


def test_size_0_is_what_the_model_was_made_for():
    assert own_image_size("simple_cnn") == 128
    assert own_image_size("torchvision/resnet18") == 224
    plan = make_plan(
        resolve_run(None, None, {"model": "timm/test_vit.r160_in1k", "image_size": 0}), Setup()
    )
    assert plan.recipe.image_size == 160
    assert plan.run.name == "timm_test_vit_r160_in1k"
    assert plan.recipe == Recipe(model="timm/test_vit.r160_in1k", image_size=160)


def test_weights_that_cannot_be_had_are_one_quick_error(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        ValueError, match=r"must be in .* or be downloadable from http://127.0.0.1:9/"
    ):
        build_model("timm/test_convnext", LABELS, 32, pretrained=True)
