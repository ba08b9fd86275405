"""Training as photographs are fine-tuned: accumulation, memory, layers, regularisation."""

import dataclasses

import pytest
import torch
from test_seeds import Listener, Said, job_in, never
from test_training import CPU, MODERN, TINY, stripes, weights_of, without_times

from pose.config import Recipe, Setup
from pose.data.tensors import TrainingData
from pose.display import NoDisplay
from pose.errors import InputError
from pose.named_runs import resolve_run
from pose.plan import _check_model, make_plan
from pose.seeds import folder as seed_folder
from pose.seeds import train as seed_train
from pose.seeds.train import load_job_data, train_seed
from pose.training.loop import train
from pose.training.model import build_for_training
from pose.training.optimization import build_optimizer, hold_learning_rate, set_learning_rate
from pose.training.state import TrainState, start_state
from pose.training.step import Step
from pose_models import ImageClassifier, TrainMode, build_model
from pose_models.depth import depths


@pytest.fixture(scope="module")
def data() -> TrainingData:
    images, labels = stripes(38)
    rows = torch.arange(38)
    # 26 train: the last step of 8 learns from 2 images; the classes are not alike.
    return TrainingData(
        images=images,
        labels=torch.where(rows < 20, labels, 0),
        train_rows=rows[:26],
        val_rows=rows[26:],
        mirrors=torch.tensor([0, 1]),
    )


def plain_network(recipe: Recipe) -> ImageClassifier:
    """Without batch norm and dropout, which depend on what is seen together."""
    model = build_model(recipe.model, ("a", "b"), recipe.image_size)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.nn.BatchNorm2d | torch.nn.Dropout):
                setattr(parent, name, torch.nn.Identity())
    return model


def start(recipe: Recipe, build=plain_network, seed: int = 0) -> TrainState:
    return start_state(lambda: build(recipe), recipe, seed, CPU)


def trained(data, recipe, **options) -> TrainState:
    state = start(recipe)
    train(Step(state, data, recipe, torch.float32), **options)
    return state


def assert_same_steps(state: TrainState, other: TrainState) -> None:
    """But for rounding, which Adam's first steps enlarge where a gradient is almost 0."""
    difference = (weights_of(state) - weights_of(other)).abs()
    assert difference.mean() < 1e-6
    assert difference.max() < 2e-4, "a fifth of one of its steps"


# Accumulation

EVERYTHING = {
    "class_weighting": "balanced",
    "label_smoothing": 0.1,
    "clip_grad_norm": 0.5,
    "augmentation": "ensemble_2",
    "num_epochs": 2,
}


@pytest.mark.parametrize(
    "changes",
    [EVERYTHING, {**EVERYTHING, "mixup_alpha": 0.4, "random_erasing": 0.5, "ema_decay": 0.9}],
    ids=["labels", "mixed"],
)
@pytest.mark.parametrize(("batch_size", "accumulate"), [(4, 2), (1, 8), (3, 3)])
def test_accumulated_batches_are_the_large_batch(data, changes, batch_size, accumulate):
    large = dataclasses.replace(
        TINY, **{**changes, "batch_size": batch_size * accumulate, "optimizer": "adamw"}
    )
    small = dataclasses.replace(large, batch_size=batch_size, accumulate=accumulate)
    one, many = trained(data, large), trained(data, small)
    assert_same_steps(many, one)
    for row, other in zip(many.history, one.history, strict=True):
        assert row["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)
        assert row["train_acc"] == other["train_acc"]


def test_accumulation_is_part_of_the_identity_where_it_does_something():
    assert "accumulate" not in Recipe().identity()
    assert Recipe(accumulate=4).digest() != Recipe().digest()
    with pytest.raises(InputError, match="accumulate must be at least 1, got 0"):
        Recipe(accumulate=0)


# Memory


def refuse_more_than(model: torch.nn.Module, limit: int) -> None:
    """What a GPU raises, by a hook, for want of one: in training and above `limit` images."""

    def check(module, inputs):
        if module.training and len(inputs[0]) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    model.network.register_forward_pre_hook(check)


def small_network(limit: int, build=plain_network):
    def built(recipe: Recipe) -> ImageClassifier:
        model = build(recipe)
        refuse_more_than(model, limit)
        return model

    return built


def test_too_large_a_batch_is_learned_from_in_parts(data):
    recipe = dataclasses.replace(TINY, num_epochs=2)
    whole = trained(data, recipe)
    told = []
    state = start(recipe, small_network(3))
    train(Step(state, data, recipe, torch.float32, told.append))
    assert told == [4, 2]
    assert_same_steps(state, whole)
    # Whoever continues it does not run out of memory again.
    saved, resumed = state.state_dict(), start(recipe, small_network(3))
    resumed.load_state_dict(saved)
    longer = dataclasses.replace(recipe, num_epochs=3)
    train(Step(resumed, data, longer, torch.float32, told.append))
    assert resumed.num_epochs_done == 3
    assert told == [4, 2]


def test_a_checkpoint_of_before_still_continues(data):
    saved = trained(data, dataclasses.replace(TINY, num_epochs=1)).state_dict()
    del saved["smaller_batch"]
    state = start(TINY)
    state.load_state_dict(saved)
    assert state.smaller_batch is None and state.num_epochs_done == 1


def test_memory_for_no_image_is_one_line(data):
    state = start(TINY, small_network(0))
    with pytest.raises(InputError, match="one image at a time, found: CUDA out of memory") as error:
        train(Step(state, data, TINY, torch.float32))
    assert "\n" not in str(error.value)


class Tags(Listener):
    def __init__(self) -> None:
        super().__init__()
        self.tags: dict[str, str] = {}

    def log_tags(self, tags: dict[str, str]) -> None:
        self.tags.update(tags)


def test_a_seed_says_and_records_that_memory_was_not_enough(tmp_path, stripes, monkeypatch):
    build = seed_train.build_fitted

    def built(*arguments):
        model = build(*arguments)
        refuse_more_than(model, 5)
        return model

    monkeypatch.setattr(seed_train, "build_fitted", built)
    job = job_in(tmp_path, stripes, num_epochs=1, accumulate=2)
    display, tracker = Said(), Tags()
    train_seed(job, load_job_data(job, display), tracker, display, never)
    said = [line for line in display.lines if "out of memory" in line]
    assert said[-1] == (
        "seed 4: out of memory, goes on with batch_size 4 and accumulate 8: a step still learns "
        "from 32 images, of which batch norm sees 4 at a time"
    )
    assert len(said) == 2
    assert tracker.tags == {"batch_size_in_memory": "4", "accumulate_in_memory": "8"}
    assert tracker.ends == [("FINISHED", "epochs")]


# Stopping


@pytest.mark.parametrize("recipe", [TINY, MODERN], ids=["frozen", "modern"])
def test_interrupted_training_equals_straight_training(data, recipe, tmp_path):
    recipe = dataclasses.replace(
        recipe, num_epochs=3, batch_size=4, accumulate=2, layer_decay=0.8, dropout=0.2
    )

    def built(recipe: Recipe) -> ImageClassifier:
        return build_for_training(recipe, ("a", "b"))

    straight = start(recipe, built, seed=5)
    train(Step(straight, data, recipe, torch.float32))
    broken, asked = start(recipe, built, seed=5), iter([None] * 6)
    train(
        Step(broken, data, recipe, torch.float32),
        stop=lambda: next(asked, "signal"),
        callbacks=[lambda state, row: seed_folder.write_checkpoint(tmp_path, state.state_dict())],
    )
    resumed = start(recipe, built, seed=77)
    resumed.load_state_dict(seed_folder.read_checkpoint(tmp_path / seed_folder.CHECKPOINT))
    assert resumed.num_epochs_done == 1
    train(Step(resumed, data, recipe, torch.float32))
    assert torch.equal(weights_of(straight), weights_of(resumed))
    assert without_times(straight.history) == without_times(resumed.history)


# Layers


def test_layers_are_counted_from_the_image_to_the_head():
    found = depths(build_model("pose_net", ("a", "b"), 32).network)
    assert found["stem.0.0.weight"] == found["stem.0.1.weight"] == 0
    assert found["stem.1.0.weight"] == 1
    assert [found[f"stages.{n}.conv1.weight"] for n in range(3)] == [2, 3, 4]
    assert found["stages.2.shortcut.0.weight"] == 4
    assert found["head.bias"] == 5


@pytest.mark.parametrize(
    ("name", "num_layers", "first", "last"),
    [
        ("simple_cnn", 6, "features.0.1.bias", "classifier.3.weight"),
        ("torchvision/resnet18", 10, "bn1.weight", "fc.weight"),
        ("torchvision/vit_b_16", 14, "encoder.pos_embedding", "heads.head.weight"),
        ("torchvision/convnext_tiny", 23, "features.0.0.weight", "classifier.2.weight"),
        ("timm/test_vit", 8, "pos_embed", "head.weight"),
        ("timm/test_convnext", None, "stem.0.weight", "head.fc.weight"),
    ],
)
def test_every_networks_layers_have_no_gaps(name, num_layers, first, last):
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    with torch.device("meta"):
        network = build_model(name, ("a", "b"), 224).network
    found = depths(network)
    assert set(found) == {name for name, _ in network.named_parameters()}
    assert sorted(set(found.values())) == list(range(max(found.values()) + 1))
    assert found[first] == 0
    assert found[last] == max(found.values()) == (num_layers or found[last] + 1) - 1


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "muon"])
def test_rates_fall_with_each_layer(optimizer):
    recipe = Recipe(optimizer=optimizer, layer_decay=0.5)
    model = build_model("pose_net", ("a", "b"), 32)
    built = build_optimizer(model, recipe)
    hold_learning_rate(built, CPU)
    set_learning_rate(built, 0.1)
    rates = {id(p): group["lr"] for group in built.param_groups for p in group["params"]}
    depth_of = depths(model.network)
    for name, parameter in model.network.named_parameters():
        assert rates.pop(id(parameter)) == pytest.approx(0.1 * 0.5 ** (5 - depth_of[name]))
    assert rates == {}, "in two groups"
    # Weights are decayed as they are without.
    plain = build_optimizer(model, dataclasses.replace(recipe, layer_decay=1.0))
    assert all("lr_scale" not in group for group in plain.param_groups)
    decay, expected = (
        {id(p): g["weight_decay"] for g in o.param_groups for p in g["params"]}
        for o in (built, plain)
    )
    assert decay == expected


def test_the_first_layers_hardly_move(data):
    recipe = dataclasses.replace(TINY, num_epochs=1, layer_decay=0.1, optimizer="adamw")
    state = start(recipe)
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    train(Step(state, data, recipe, torch.float32))
    moved = {n: (v - before[n]).abs().max() for n, v in state.model.named_parameters()}
    # 4 steps of Adam, each as large as the rate or less: 1e-3 at the head, 1e-8 at the image.
    assert 1e-4 < moved["network.classifier.3.weight"] < 5e-3
    assert moved["network.features.0.0.weight"] < 5e-7


# Regularisation


def ask(name: str, **mode) -> torch.nn.Module:
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    return build_model(name, ("a", "b"), 32, mode=TrainMode(**mode)).network


def test_dropout_is_set_where_it_is():
    dropouts = [m for m in ask("simple_cnn", dropout=0.7).modules() if hasattr(m, "p")]
    assert [module.p for module in dropouts] == [0.7]
    assert ask("timm/test_vit", dropout=0.7).head_drop.p == 0.7


def test_stochastic_depth_rises_to_the_last_block():
    paths = [
        module.p
        for module in ask("torchvision/convnext_tiny", drop_path=0.4).modules()
        if type(module).__name__ == "StochasticDepth"
    ]
    assert paths == pytest.approx([0.4 * n / 17 for n in range(18)])
    rates = [
        module.drop_prob
        for module in ask("timm/test_convnext", drop_path=0.4).modules()
        if type(module).__name__ == "DropPath"
    ]
    assert rates == sorted(rates) and rates[-1] == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("pose_net", {"dropout": 0.1}),
        ("torchvision/resnet18", {"dropout": 0.1}),
        ("torchvision/resnet18", {"drop_path": 0.1}),
        ("timm/vgg11", {"drop_path": 0.1}),
        ("pose_net", {"checkpointing": True}),
    ],
)
def test_a_model_that_has_no_such_thing_is_refused_in_one_line(name, mode):
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    (setting,) = mode
    recipe = Recipe(model=name, image_size=32, **mode)
    with pytest.raises(InputError, match=f"{setting} must go with a model") as caught:
        _check_model(recipe, ("a", "b"))
    assert "leave it out" in str(caught.value) and "\n" not in str(caught.value)


def test_checkpointing_gives_the_same_gradients():
    grads, kept = [], []
    for is_on in (False, True):
        torch.manual_seed(0)
        network = ask("timm/test_vit", checkpointing=is_on).train()
        images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        num_bytes = 0

        def keep(tensor):
            nonlocal num_bytes
            num_bytes += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = network(images).square().mean()
        kept.append(num_bytes)
        loss.backward()
        grads.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    torch.testing.assert_close(*grads)
    assert kept[1] < 0.5 * kept[0], "of the activations"


def test_settings_at_their_defaults_are_no_part_of_the_identity():
    names = {"layer_decay", "dropout", "drop_path", "checkpointing", "accumulate"}
    assert not names & set(Recipe().identity())
    some = Recipe(layer_decay=0.7, dropout=0.0, drop_path=0.0, checkpointing=True, accumulate=2)
    assert names <= set(some.identity())
    for bad in ({"layer_decay": 0.0}, {"layer_decay": 1.5}, {"dropout": 1.0}, {"drop_path": -0.1}):
        with pytest.raises(InputError, match=rf"{next(iter(bad))} must be in"):
            Recipe(**bad)


# The named run


def test_weights_stand_in_for_pretrained_ones():
    plain = resolve_run("finetune", None, {"model": "timm/test_vit"})
    assert plain.recipe.pretrained and plain.recipe.weights is None
    given = resolve_run("finetune", None, {"weights": "models:/pose/3"})
    assert (given.recipe.pretrained, given.recipe.model) == (False, "pose_net")
    with pytest.raises(InputError, match="weights and pretrained must not both be given"):
        resolve_run("finetune", None, {"weights": "w.pth", "pretrained": True})


def test_a_model_without_pretrained_weights_says_what_to_give():
    recipe = resolve_run("finetune", None, {"image_size": 32}).recipe
    with pytest.raises(InputError, match="not for pose_net: name one of .*, or give weights$"):
        _check_model(recipe, ("a", "b"))


def test_weights_in_the_folder_that_makes_room_are_refused(tmp_path):
    path = tmp_path / "finetune" / "seed_0" / "pose_cnn.pth"
    run = resolve_run("finetune", None, {"weights": str(path)})
    with pytest.raises(InputError, match="weights must not lie in .*finetune, which is moved"):
        make_plan(run, Setup(output_root=str(tmp_path)))


def test_finetune_continues_a_member_of_another_run(tmp_path, stripes):
    first = job_in(tmp_path / "first", stripes, model="pose_net", num_epochs=1)
    train_seed(first, load_job_data(first, NoDisplay()), Listener(), NoDisplay(), never)
    weights = str(first.output / seed_folder.WEIGHTS)
    run = resolve_run("finetune", None, {"weights": weights, "num_epochs": 2, "image_size": 32})
    plan = make_plan(run, Setup())
    assert plan.transfer(("0", "1")).share == 1
    second = dataclasses.replace(
        job_in(tmp_path / "second", stripes), recipe=plan.recipe, cache_root=None
    )
    display = Said()
    result = train_seed(second, load_job_data(second, display), Listener(), display, never)
    assert result.num_epochs == 2
    model, card = seed_folder.read_model(second.output)
    assert card.recipe["layer_decay"] == 0.75
    assert model.labels == ("0", "1")
