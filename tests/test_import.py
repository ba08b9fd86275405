"""Old archives: networks under other names are read, refused where they do not fit, and vote."""

import csv
import json
import re
from collections import OrderedDict
from pathlib import Path

import mlflow
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pose.archive import fit_by_order, read_archive, read_history, read_statistics
from pose.config import ImportSetup, VoteSetup
from pose.data.classes import ClassList
from pose.display import NoDisplay
from pose.errors import InputError
from pose.importing import import_archive, plan_import
from pose.tracking import Tracker
from pose.vote import vote
from pose_models import build_model

# Of MLflow about its own classes, while it is imported.
pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType")

CLASSES = ClassList(labels=("0", "1"), names=("0", "1"), mirrors=(0, 1))
STATISTICS = {"hp_mean": 0.01, "hp_std": 0.05}


class OldNet(nn.Module):
    """The original's network as somebody else may have written it; v2 has `high_pass`."""

    def __init__(self, num_classes: int = 2, *, high_pass: bool = False, width: int = 32) -> None:
        super().__init__()
        self.high_pass = high_pass
        widths = (4 if high_pass else 3, width, 2 * width, 4 * width, 256)
        # All convolutions first, as many write it: not the order in which our blocks have them.
        for n in range(4):
            conv = nn.Conv2d(widths[n], widths[n + 1], 3, padding=1, bias=not high_pass)
            self.add_module(f"conv{n + 1}", conv)
        for n in range(4):
            self.add_module(f"bn{n + 1}", nn.BatchNorm2d(widths[n + 1]))
        self.fc1 = nn.Linear(256, 256)
        self.fc2 = nn.Linear(256, num_classes)

    def forward(self, rgb: torch.Tensor) -> torch.Tensor:
        """Logits of `(N, 3, H, W)` in 0..1, normalised as the original did it."""
        mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
        if self.high_pass:
            kernel = torch.tensor([[0.0, -1, 0], [-1, 4, -1], [0, -1, 0]]).view(1, 1, 3, 3) / 4
            edges = F.conv2d(rgb.mean(dim=1, keepdim=True), kernel, padding=1)
            rgb = torch.cat([rgb, edges], dim=1)
            mean, std = [*mean, STATISTICS["hp_mean"]], [*std, STATISTICS["hp_std"]]
        x = (rgb - torch.tensor(mean).view(1, -1, 1, 1)) / torch.tensor(std).view(1, -1, 1, 1)
        for n in range(1, 5):
            x = F.max_pool2d(F.relu(getattr(self, f"bn{n}")(getattr(self, f"conv{n}")(x))), 2)
        return self.fc2(F.relu(self.fc1(x.mean(dim=(2, 3)))))


def old_net(seed: int, **settings) -> OldNet:
    """A network whose batch norms have seen something."""
    torch.manual_seed(seed)
    net = OldNet(**settings)
    for _ in range(3):
        net(torch.rand(8, 3, 32, 32))
    return net.eval()


def write_archive(folder: Path, seeds=(76, 100), **settings) -> Path:
    for seed in seeds:
        own = folder / f"seed_{seed}"
        own.mkdir(parents=True)
        torch.save(old_net(seed, **settings).state_dict(), own / "pose_cnn.pth")
        torch.save({"epoch": 3, "model": old_net(seed, **settings).state_dict()},
                   own / "last_ckpt.pth")  # fmt: skip
        (own / "training_history.png").write_bytes(b"a picture")
        rows = ["epoch,train_loss,train_acc,train_f1,val_loss,val_acc,val_f1,learning_rate"]
        rows += [f"{n},0.{9 - n},0.5,0.5,0.7,0.6,0.{5 + n % 3},0.001" for n in range(1, 5)]
        (own / "training_history.csv").write_text("\n".join(rows) + "\n")
    if settings.get("high_pass"):
        (folder / "hp_stats.json").write_text(json.dumps(STATISTICS))
    return folder


# Reading


@pytest.mark.parametrize("high_pass", [False, True])
def test_a_network_of_other_names_gives_the_same_logits(tmp_path, high_pass):
    archive = read_archive(write_archive(tmp_path, high_pass=high_pass), CLASSES, 32)
    assert archive.model == ("simple_cnn_v2" if high_pass else "simple_cnn")
    assert [own.seed for own in archive.seeds] == [76, 100] and archive.notes == ()
    images = torch.rand(4, 3, 32, 32)
    for own in archive.seeds:
        model = build_model(archive.model, CLASSES.labels, 32).eval()
        model.load_state_dict(own.weights)
        expected = old_net(own.seed, high_pass=high_pass)(images)
        torch.testing.assert_close(model(images), expected, atol=1e-5, rtol=1e-4)
        assert (own.best["epoch"], own.best["val_f1"]) == (2, 0.7)


@pytest.mark.parametrize("wrap", [lambda s: {"model_state_dict": s, "epoch": 3}, lambda s: s])
def test_names_in_a_sequence_or_of_another_program_fit_as_well(wrap):
    own = build_model("simple_cnn", CLASSES.labels, 32).network.state_dict()
    renamed = OrderedDict((f"module.{n}_{k.rpartition('.')[2]}", v) for n, (k, v)
                          in enumerate(own.items()))  # fmt: skip
    fitted = fit_by_order(own, renamed)
    assert {name: value.data_ptr() for name, value in fitted.items()} == {
        name: value.data_ptr() for name, value in own.items()
    }


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"num_classes": 3}, r"for 2 classes, the first that does not fit is fc2.weight (3, 256)"),
        ({"width": 16}, "the first that does not fit is conv1.weight (16, 3, 3, 3)"),
        ({"model": "simple_cnn_v2"}, "of simple_cnn_v2 for 2 classes, the first that does not fit "
         "is conv1.weight (32, 3, 3, 3)"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_the_first_tensor(tmp_path, settings, found):
    model = settings.pop("model", None)
    write_archive(tmp_path, seeds=(76,), **settings)
    with pytest.raises(InputError, match=re.escape(found)) as caught:
        read_archive(tmp_path, CLASSES, 32, model)
    assert "seed_76/pose_cnn.pth" in str(caught.value) and "\n" not in str(caught.value)


def test_tensors_of_one_shape_are_not_taken_for_each_other():
    own = build_model("simple_cnn", CLASSES.labels, 32).network.state_dict()
    net = OldNet()
    swapped = OrderedDict((k, v) for k, v in net.state_dict().items() if k.startswith("bn"))
    swapped.update(net.state_dict())
    misfit = fit_by_order(own, swapped)
    assert misfit.text == "bn1.weight (32,), in whose place a bias belongs"
    cut = OrderedDict(list(net.state_dict().items())[:-1])
    assert fit_by_order(own, cut).text == "a missing one, classifier.3.bias (2,)"


class Planted:
    """What a pickle would run."""

    def __reduce__(self):
        return (print, ("ran",))


def lose(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def plant(path: Path) -> None:
    torch.save({"conv": Planted()}, path)


def spoil(path: Path) -> None:
    weights = torch.load(path, weights_only=True)
    weights["fc1.bias"][0] = float("nan")
    torch.save(weights, path)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("pose_cnn.pth", lose),
        ("pose_cnn.pth", cut),
        ("pose_cnn.pth", flip),
        ("pose_cnn.pth", plant),
        ("pose_cnn.pth", spoil),
        ("last_ckpt.pth", cut),
        ("training_history.csv", lose),
        ("training_history.csv", lambda path: path.write_text("epoch,val_loss\n1,0.5\n")),
        ("training_history.csv", lambda path: path.write_text("epoch,val_f1\n1,0.5\n1,0.6\n")),
        ("training_history.csv", lambda path: path.write_text("epoch,val_f1\n1,nan\n")),
        ("training_history.csv", lambda path: path.write_text("epoch,val_f1\n1,much\n")),
    ],
)
def test_a_broken_seed_is_named_and_nothing_runs(tmp_path, capfd, name, damage):
    write_archive(tmp_path)
    damage(tmp_path / "seed_100" / name)
    with pytest.raises(InputError, match=f"seed_100/{name}") as caught:
        read_archive(tmp_path, CLASSES, 32)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().out == ""


def test_an_archive_without_seeds_is_refused(tmp_path):
    with pytest.raises(InputError, match="which is no folder"):
        read_archive(tmp_path / "none", CLASSES, 32)
    write_archive(tmp_path / "inner")
    with pytest.raises(InputError, match="found none in .*; inner in it has: give that one"):
        read_archive(tmp_path, CLASSES, 32)


def test_statistics_are_found_by_their_words(tmp_path):
    path = tmp_path / "hp_stats.json"
    for text in ('{"mean": 0.5, "std": 2}', '{"hp_mean": [0.5], "hp_std": [2.0]}'):
        path.write_text(text)
        assert read_statistics(path) == (0.5, 2.0)
    for text in ("{", "[1, 2]", '{"mean": 1}', '{"mean": 1, "std": 0}', '{"mean": "x", "std": 1}'):
        path.write_text(text)
        with pytest.raises(InputError, match="hp_stats.json must"):
            read_statistics(path)
    write_archive(tmp_path / "v2", seeds=(1,), high_pass=True)
    (tmp_path / "v2" / "hp_stats.json").unlink()
    (note,) = read_archive(tmp_path / "v2", CLASSES, 32).notes
    assert "mean 0.0034316 and standard deviation 0.0380552 of the published data" in note


def test_a_history_without_some_numbers_is_taken_as_it_is(tmp_path):
    path = tmp_path / "training_history.csv"
    path.write_text("epoch,val_f1,lr\n0,0.5,\n1,0.6,0.001\n")
    assert read_history(path) == [
        {"epoch": 0, "val_f1": 0.5},
        {"epoch": 1, "val_f1": 0.6, "lr": 0.001},
    ]


# In MLflow


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    mlflow.set_tracking_uri(None)
    return tmp_path


def setup_of(stripes: Path, **settings) -> ImportSetup:
    values = {"archive": "old", "dataset": str(stripes), "image_size": 32, **settings}
    return ImportSetup(**values)


class Interrupting(NoDisplay):
    """A display whose user has enough after the first seed."""

    def say(self, text: str) -> None:
        if text.startswith("seed 76"):
            raise KeyboardInterrupt


def test_an_import_that_was_cut_short_goes_on_to_a_finished_run_that_votes(place, stripes):
    write_archive(place / "old")
    setup = setup_of(stripes)
    with pytest.raises(KeyboardInterrupt):
        import_archive(plan_import(setup), Tracker(), Interrupting())
    done = import_archive(plan_import(setup), Tracker(), NoDisplay())
    client = mlflow.MlflowClient()
    assert len(client.search_runs(["0"], "tags.kind = 'train'")) == 1
    parent = client.get_run(done.run_id)
    tags = {"run": "old", "kind": "train", "seeds": "76,100", "is_complete": "true",
            "model": "simple_cnn", "best_seed": "76"}  # fmt: skip
    assert tags.items() <= parent.data.tags.items()
    assert parent.info.status == "FINISHED" and parent.data.metrics["val_f1_mean"] == 0.7
    children = client.search_runs(["0"], f"tags.parent_run_id = '{done.run_id}'")
    assert {run.data.tags["seed"] for run in children} == {"76", "100"}
    for run in children:
        assert run.info.status == "FINISHED" and run.data.metrics["best_epoch"] == 2
        history = client.get_metric_history(run.info.run_id, "val_f1")
        assert [(m.step, m.value) for m in history] == [(1, 0.6), (2, 0.7), (3, 0.5), (4, 0.6)]
        assert len(client.get_metric_history(run.info.run_id, "learning_rate")) == 4
        names = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
        assert names >= {"pose_cnn.pth", "last_ckpt.pth", "training_history.csv",
                         "training_history.png", "config.json"}  # fmt: skip

    voted = vote(VoteSetup(run="old", out_path="p.csv"), Tracker(), NoDisplay())
    assert voted.score.reason == "the members' predictions have no labels"
    rows = list(csv.DictReader((place / "p.csv").read_text().splitlines()))
    assert len(rows) == 12 and {row["label"] for row in rows} <= {"0", "1"}

    with pytest.raises(InputError, match=f"must not be imported twice.*{done.run_id}"):
        import_archive(plan_import(setup), Tracker(), NoDisplay())
    assert len(client.search_model_versions("name = 'pose'")) == 2


def test_labels_come_in_the_order_that_is_given(place, stripes):
    write_archive(place / "old", seeds=(1,))
    assert plan_import(setup_of(stripes)).archive.classes.labels == ("0", "1")
    swapped = plan_import(setup_of(stripes, classes="1,0")).archive.classes
    assert (swapped.labels, swapped.mirrors) == (("1", "0"), (0, 1))
    alone = plan_import(setup_of(None, dataset=None, classes="left,right"))
    assert alone.archive.classes.labels == ("left", "right") and alone.dataset is None
    for settings, found in (
        ({"dataset": None}, "classes must be given"),
        ({"classes": "0,2"}, "classes must be the labels of"),
        ({"run_name": "a b"}, "run_name must match"),
        ({"output_root": ".", "run_name": "old"}, "archive must lie outside old"),
    ):
        with pytest.raises(InputError, match=re.escape(found)):
            plan_import(setup_of(stripes, **settings))
    for bad in ("0,0", "0", "0,,1"):
        with pytest.raises(InputError, match="classes must be two labels or more, each once"):
            setup_of(stripes, classes=bad)
    assert not (place / "outputs").exists() and not (place / "mlflow.db").exists()
