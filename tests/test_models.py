"""Models by name: what they compute, how large they are, and what they take."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models as torchvision_models

from pose_models import (
    MODELS,
    TORCHVISION_PREFIX,
    ImageClassifier,
    SeedEnsemble,
    build_model,
    check_model_name,
    for_inference,
    onednn,
    simple_cnn,
)
from pose_models.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess, high_pass

LABELS = ("cat", "dog", "owl")
CLASSIFIERS = torchvision_models.list_models(module=torchvision_models)


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def random_images(n: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (n, 3, height, width)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def scrambled(model: ImageClassifier) -> ImageClassifier:
    """The model in evaluation mode, with statistics of batch norms that are not 0 and 1."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean):
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
            module.running_var.copy_(
                torch.rand(module.running_var.shape, generator=generator) + 0.5
            )
    return model.eval()


# The project's own


@pytest.mark.parametrize(
    ("name", "expected"), [("simple_cnn", 455_682), ("simple_cnn_v2", 455_490)]
)
def test_originals_have_their_number_of_parameters(name, expected):
    assert num_parameters(build_model(name, ("0", "1"), 128)) == expected


def test_simple_cnn_is_the_textbook_order_of_relu_and_pooling():
    model = scrambled(build_model("simple_cnn", LABELS, 64))
    network, images = model.network, random_images(2, 64, 64)
    x = (images / 255 - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(
        IMAGENET_STD
    ).view(3, 1, 1)
    for convolution, norm, _, _ in network.features:
        x = F.max_pool2d(F.relu(norm(convolution(x))), 2)
    x = F.adaptive_avg_pool2d(x, 1).flatten(1)
    first, last = (layer for layer in network.classifier if isinstance(layer, nn.Linear))
    expected = last(F.relu(first(x)))
    with torch.no_grad():
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.01, "the comparison must compare something"


def gradients(model, images: torch.Tensor, *, bfloat16: bool) -> dict[str, torch.Tensor]:
    """Gradients of the squared logits in training mode, and the buffers that training moves."""
    model = copy.deepcopy(model).train()
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        model(images).square().mean().backward()
    assert all(p.grad.layout == torch.strided for p in model.parameters())
    return {n: p.grad for n, p in model.named_parameters()} | dict(model.named_buffers())


@pytest.mark.parametrize(("bfloat16", "tolerance"), [(False, 0.02), (True, 0.25)])
@pytest.mark.parametrize("name", ["simple_cnn", "simple_cnn_v2"])
def test_training_in_onednn_layout_is_training_as_usual(name, bfloat16, tolerance, monkeypatch):
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    if not onednn.is_supported(dtype):
        pytest.skip(f"oneDNN has no {dtype} on this machine")
    torch.manual_seed(1)
    model = build_model(name, LABELS, 64)
    next(m for m in model.modules() if isinstance(m, torch.nn.Dropout)).p = 0.0
    images = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8)
    layouts = []
    model.network.features[0].register_forward_pre_hook(lambda _, x: layouts.append(x[0].layout))
    in_onednn = gradients(model, images, bfloat16=bfloat16)
    monkeypatch.setattr(simple_cnn, "to_onednn", lambda x: x)
    as_usual = gradients(model, images, bfloat16=bfloat16)
    assert layouts == [torch._mkldnn, torch.strided]
    # Maxima and signs that are equal within rounding send a few gradients another way.
    for key, expected in as_usual.items():
        if key.endswith(".0.bias") and "features" in key:
            continue  # batch norm takes it out again: its gradient is nothing but rounding
        difference = (in_onednn[key].double() - expected.double()).norm()
        assert difference <= tolerance * expected.double().norm(), key


def test_finished_simple_cnn_uses_ordinary_tensors():
    model = build_model("simple_cnn", LABELS, 32).eval()
    layouts = []
    model.network.features.register_forward_hook(lambda *args: layouts.append(args[2].layout))
    model(torch.zeros(1, 3, 32, 32)).sum().backward()
    assert layouts == [torch.strided]


def test_simple_cnn_drops_hidden_units_in_training_only():
    (dropout,) = (
        module for module in build_model("simple_cnn", LABELS, 32).modules()
        if isinstance(module, nn.Dropout)
    )  # fmt: skip
    assert dropout.p == 0.3


def test_only_the_second_original_sees_the_high_pass_channel_and_has_no_bias():
    first, second = (build_model(f"simple_cnn{end}", LABELS, 32) for end in ("", "_v2"))
    assert first.network.features[0][0].weight.shape == (32, 3, 3, 3)
    assert second.network.features[0][0].weight.shape == (32, 4, 3, 3)
    assert first.network.features[0][0].bias is not None
    assert second.network.features[0][0].bias is None


def test_high_pass_is_the_laplacian_of_the_mean():
    rgb = torch.rand(2, 3, 17, 12, generator=torch.Generator().manual_seed(0))
    kernel = torch.tensor([[0.0, -1, 0], [-1, 4, -1], [0, -1, 0]]).view(1, 1, 3, 3) / 4
    expected = F.conv2d(rgb.mean(dim=1, keepdim=True), kernel, padding=1)
    torch.testing.assert_close(high_pass(rgb), expected, rtol=0, atol=1e-6)


def test_high_pass_statistics_are_those_of_the_images_given():
    preprocess = Preprocess(24, high_pass=True)
    assert preprocess.mean[0, 3] == pytest.approx(0.0034316)
    assert preprocess.std[0, 3] == pytest.approx(0.0380552)
    images = random_images(7, 24, 24)
    preprocess.fit_high_pass(images.split(3))
    values = high_pass(images / 255).double()
    assert float(preprocess.mean[0, 3]) == pytest.approx(float(values.mean()), rel=1e-5)
    assert float(preprocess.std[0, 3]) == pytest.approx(float(values.std(correction=0)), rel=1e-5)
    channel = preprocess(images)[:, 3]
    assert abs(float(channel.mean())) < 1e-5
    assert float(channel.std(correction=0)) == pytest.approx(1, rel=1e-4)


def test_images_without_an_edge_do_not_divide_by_zero():
    preprocess = Preprocess(8, high_pass=True)
    preprocess.fit_high_pass([torch.zeros(2, 3, 8, 8, dtype=torch.uint8)])
    assert torch.isfinite(preprocess(random_images(1, 8, 8))).all()


@pytest.mark.parametrize("name", MODELS)
def test_bytes_and_fractions_give_the_same_logits_at_any_size(name):
    model = scrambled(build_model(name, LABELS, 32))
    with torch.inference_mode():
        for shape in ((32, 32), (50, 33), (7, 100)):
            images = random_images(2, *shape)
            logits = model(images)
            assert logits.shape == (2, 3)
            assert logits.dtype == torch.float32
            torch.testing.assert_close(model(images.float() / 255), logits)
            torch.testing.assert_close(model(images[:1]), logits[:1], rtol=1e-4, atol=1e-4)


def test_preprocessing_resizes_and_normalises():
    images = torch.zeros(1, 3, 40, 20, dtype=torch.uint8)
    images[:, 0] = 255
    found = Preprocess(16)(images)
    assert found.shape == (1, 3, 16, 16)
    expected = [(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225]
    torch.testing.assert_close(found[0, :, 3, 5], torch.tensor(expected))


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 1, 16, 16), (1, 16, 16, 3)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"images must be \(N, 3, H, W\), got"):
        build_model("pose_net", LABELS, 16)(torch.zeros(shape))


def test_weights_follow_from_the_global_seed():
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        weights.append(build_model("pose_net", LABELS, 32).network.head.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


# Prediction


@pytest.mark.parametrize("name", [*MODELS, "torchvision/mobilenet_v3_small"])
def test_models_for_inference_give_the_same_logits_and_leave_the_original_alone(name):
    model = scrambled(build_model(name, LABELS, 64)).train()
    images = random_images(5, 64, 50)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    predicting = for_inference(model)
    assert model.training
    with torch.inference_mode():
        expected = model.eval()(images)
        torch.testing.assert_close(predicting(images), expected, rtol=1e-3, atol=1e-4)
    assert expected.std() > 0.01, "the comparison must compare something"
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_simple_cnn_for_inference_has_no_batch_norm_and_uses_onednn_layout():
    if not onednn.is_supported(torch.float32):
        pytest.skip("this torch is built without oneDNN")
    model = for_inference(build_model("simple_cnn", LABELS, 32))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    layouts = []
    for block in model.network.features:
        block.register_forward_hook(lambda *args: layouts.append(args[2].layout))
    model(torch.zeros(1, 3, 32, 32))
    assert layouts == [torch._mkldnn] * 4


def test_batch_norm_is_folded_only_where_it_follows_for_sure():
    class Reversed(nn.Sequential):
        def forward(self, x):
            for layer in reversed(self):
                x = layer(x)
            return x

    network = Reversed(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    model = scrambled(ImageClassifier(Preprocess(8), network, LABELS))
    predicting, images = for_inference(model), random_images(2, 8, 8)
    assert torch.equal(predicting(images), model(images))


# Ensembles


def test_softmax_of_the_ensemble_is_the_mean_of_the_members():
    members = [scrambled(build_model(name, LABELS, size)) for name, size in
               (("simple_cnn", 32), ("simple_cnn_v2", 48), ("pose_net", 40))]  # fmt: skip
    ensemble = SeedEnsemble(members).eval()
    images = random_images(4, 40, 50)
    with torch.inference_mode():
        expected = torch.stack([member(images).softmax(dim=1) for member in members]).mean(dim=0)
        torch.testing.assert_close(ensemble(images).softmax(dim=1), expected)
    assert ensemble.labels == LABELS
    assert num_parameters(ensemble) == sum(num_parameters(member) for member in members)


# Names


def test_unknown_model_lists_the_known_ones():
    with pytest.raises(ValueError) as caught:
        build_model("resnet18", LABELS, 32)
    names = "pose_net, simple_cnn, simple_cnn_v2, torchvision/<name> or timm/<name>"
    assert str(caught.value) == f"model must be one of {names}, got 'resnet18'"


@pytest.mark.parametrize("name", ["resnet9", "fasterrcnn_resnet50_fpn", "fcn_resnet50", ""])
def test_what_is_no_classifier_of_torchvision_lists_those_that_are(name):
    with pytest.raises(ValueError, match="alexnet, convnext_base.*wide_resnet50_2.*, got"):
        check_model_name(TORCHVISION_PREFIX + name)


# Torchvision's own


@pytest.mark.parametrize(
    "name", [name for name in CLASSIFIERS if not name.startswith("regnet")]
)  # fmt: skip
def test_every_torchvision_classifier_builds(name):
    # Without memory for the weights: some are of several gigabytes.
    with torch.device("meta"):
        model = build_model(TORCHVISION_PREFIX + name, LABELS, 224)
    last = [
        module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)
    ][-1]  # fmt: skip
    assert last.weight.shape[0] == len(LABELS)
    assert model.labels == LABELS


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_are_left_out_in_training(name):
    with torch.device("meta"):
        model = build_model(TORCHVISION_PREFIX + name, LABELS, 96).train()
        assert model(torch.empty(2, 3, 40, 50)).shape == (2, 3)


# RegNets compute their widths with tensors, so the meta device cannot build them; one stands for
# the family, whose members differ in numbers.
@pytest.mark.parametrize(
    "name",
    ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1", "regnet_y_400mf"],
)
def test_small_torchvision_classifiers_learn(name):
    torch.manual_seed(0)
    model = build_model(TORCHVISION_PREFIX + name, LABELS, 64).train()
    logits = model(random_images(2, 40, 50))
    assert logits.shape == (2, 3)
    F.cross_entropy(logits, torch.tensor([0, 2])).backward()
    grads = {key: value.grad for key, value in model.named_parameters()}
    assert [key for key, grad in grads.items() if grad is None] == []
    assert all(torch.isfinite(grad).all() for grad in grads.values())


def test_vision_transformers_are_built_for_the_image_size():
    with torch.device("meta"):
        model = build_model("torchvision/vit_b_16", LABELS, 96)
        # 6 x 6 patches of 16 pixels and the class token.
        assert model.network.encoder.pos_embedding.shape == (1, 37, 768)
        assert model(torch.empty(2, 3, 50, 60)).shape == (2, 3)


def test_pretrained_weights_of_the_projects_own_models_do_not_exist():
    with pytest.raises(
        ValueError, match="for torchvision/ and timm/ models only, not for pose_net"
    ):
        build_model("pose_net", LABELS, 32, pretrained=True)


def test_pretrained_weights_that_cannot_be_had_are_one_clear_error(monkeypatch, tmp_path):
    # A proxy that nobody listens at: the same on machines with and without a network.
    for variable in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ValueError) as caught:
        build_model("torchvision/mobilenet_v3_small", LABELS, 64, pretrained=True)
    message = str(caught.value)
    assert message.startswith("pretrained weights of mobilenet_v3_small must be in torch's cache")
    assert message.endswith("leave pretrained out")
    assert "\n" not in message
