"""report.html: whole in one file, every text escaped, small, and right."""

import dataclasses
import html.parser
import re
import time

import numpy as np
import pytest
import sklearn.calibration
import sklearn.metrics
import torch
from stripes import draw_stripes

from pose import metrics
from pose.config import Recipe
from pose.data.classes import ClassList
from pose.data.folder import Dataset
from pose.data.loaded import LoadedData
from pose.ensembling.analysis import (
    HeldOut,
    confident_mistakes,
    f1_by_size,
    hold_out,
    mean_probs,
    worst_pairs,
)
from pose.ensembling.diversity import (
    disagreement,
    pairwise_disagreement,
    vote_disagreement,
)
from pose.ensembling.validated import look_at
from pose.member_key import MemberKey
from pose.model_card import ModelCard, write_card
from pose.predictions import Predictions
from pose.result_pages import run_page, unfitted
from pose.results import SeedResult
from pose.seeds.folder import write_weights
from pose_models import Combination, build_model
from pose_models.heatmap import heat_maps

NAMES = ("<script>alert(1)</script>", "$x$", *(f"class {index}" for index in range(18)))


def draw_probs(num_members: int, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Members `(M, N, C)` that are right for the most part."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(num_members, len(labels), num_classes))
    logits[:, np.arange(len(labels)), labels] += 1.5
    odds = np.exp(logits)
    return odds / odds.sum(axis=2, keepdims=True)


LABELS = np.random.default_rng(1).integers(0, 5, size=400)
PROBS = draw_probs(3, LABELS, 5)
MEAN = PROBS.mean(axis=0)


def predictions_of(probs, labels=LABELS, ids=None) -> Predictions:
    ids = ids or tuple(map(str, range(len(labels))))
    classes = tuple(map(str, range(probs.shape[1])))
    return Predictions(ids=ids, probs=probs, class_labels=classes, labels=labels)


# Numbers


def test_scores_of_classes_are_those_of_scikit_learn():
    preds = MEAN.argmax(axis=1)
    ours = metrics.per_class(metrics.confusion_matrix(LABELS, preds, 5))
    theirs = sklearn.metrics.precision_recall_fscore_support(LABELS, preds, zero_division=0)
    np.testing.assert_allclose(ours, np.stack(theirs[:3], axis=1))
    empty = metrics.per_class(np.array([[2, 0], [0, 0]]))
    assert empty.tolist() == [[1, 1, 1], [0, 0, 0]], "a class without any row"


def test_reliability_is_that_of_scikit_learn():
    confidence, accuracy, counts = metrics.reliability(MEAN, LABELS, num_bins=10)
    is_right = MEAN.argmax(axis=1) == LABELS
    theirs = sklearn.calibration.calibration_curve(is_right, MEAN.max(axis=1), n_bins=10)
    np.testing.assert_allclose((accuracy, confidence), theirs)
    assert counts.sum() == len(LABELS)


def test_risk_is_the_error_of_the_surest_rows():
    coverage, risk = metrics.risk_coverage(MEAN, LABELS)
    order = np.argsort(-MEAN.max(axis=1), kind="stable")
    for num in (1, 100, 400):
        surest = order[:num]
        right = sklearn.metrics.accuracy_score(LABELS[surest], MEAN[surest].argmax(axis=1))
        assert coverage[num - 1] == num / 400
        assert risk[num - 1] == pytest.approx(1 - right)


def test_disagreement_by_pair_by_image_and_in_all_are_one_thing():
    pairs = pairwise_disagreement(PROBS)
    assert np.diag(pairs).tolist() == [0, 0, 0]
    assert disagreement(PROBS) == pytest.approx(pairs[np.triu_indices(3, 1)].mean())
    assert vote_disagreement(PROBS).mean() == pytest.approx(disagreement(PROBS))


def test_more_members_score_better_and_all_score_as_the_ensemble():
    scores = f1_by_size(PROBS, LABELS, mean_probs)
    assert [len(own) for own in scores] == [3, 3, 1]
    whole = sklearn.metrics.f1_score(LABELS, MEAN.argmax(axis=1), average="macro")
    assert scores[2][0] == pytest.approx(whole)
    assert np.mean(scores[0]) < scores[2][0]


def test_worst_pairs_name_label_prediction_and_count():
    confusion = np.array([[5, 1, 0], [4, 9, 0], [0, 0, 3]])
    assert worst_pairs(confusion) == [(1, 0, 4), (0, 1, 1)]


def test_mistakes_are_the_surest_first():
    labels = np.array([0, 0, 0, 1])
    first = np.array([[0.1, 0.9], [0.4, 0.6], [0.9, 0.1], [0.2, 0.8]])
    second = np.array([[0.3, 0.7], [0.1, 0.9], [0.8, 0.2], [0.9, 0.1]])
    probs = np.stack([first, second])
    votes = np.array([[0, 2], [0, 2], [2, 0], [1, 1]])
    held_out = HeldOut(
        ids=tuple("abcd"),
        labels=labels,
        combined=probs.mean(axis=0),
        calibrated=probs.mean(axis=0),
        probs=probs,
        votes=votes,
    )
    assert confident_mistakes(held_out, 9) == [0, 1, 3]
    members = [predictions_of(own, labels, tuple("abcd")) for own in probs]
    assert hold_out(members, mean_probs).votes.tolist() == votes.tolist()


def test_rows_of_members_that_split_apart_are_pooled():
    whole = predictions_of(PROBS[0])
    parts = [whole.take(whole.ids[:250]), whole.take(whole.ids[220:])]
    pooled = hold_out(parts, mean_probs)
    assert pooled.probs is None and len(pooled.ids) == 400
    np.testing.assert_allclose(pooled.combined, PROBS[0])
    assert "each by the members that did not train on it" in pooled.rows_text()


def test_nothing_is_shown_on_rows_that_it_was_fitted_on():
    for rule in ("soft", "hard", "rank"):
        assert unfitted(Combination(rule=rule)) == Combination(rule=rule)
    for how in (
        Combination(rule="weighted", weights=(0.5, 0.5)),
        Combination(rule="hard", temperature=2.0),
        Combination(rule="soft", offsets=(0.1, 0.0)),
    ):
        assert unfitted(how) == Combination(rule="soft")


class Bright(torch.nn.Module):
    """Logits `(N, 2)`: 0, and the mean brightness of blocks of 8 by 8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.AvgPool2d(8)

    def forward(self, channels: torch.Tensor) -> torch.Tensor:
        bright = self.blocks(channels).mean(dim=(1, 2, 3))
        return torch.stack([torch.zeros_like(bright), bright], dim=1)


@pytest.mark.parametrize("place", [slice(0, 32), slice(32, 64)])
def test_a_heat_map_lies_where_the_evidence_is(place):
    model = build_model("simple_cnn", ("a", "b"), 64).eval()
    model.network = Bright()
    images = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    images[:, :, place, place] = 255
    (heat,) = heat_maps(model, images, torch.tensor([1]))
    assert heat.shape == (64, 64) and heat.max() == 1 and heat.min() == 0
    inside = heat[place, place].sum()
    assert inside > 0.9 * heat.sum()
    assert not model.network.blocks._forward_hooks


@pytest.mark.parametrize("name", ["pose_net", "simple_cnn_v2", "torchvision/resnet18"])
def test_every_network_has_heat_maps(name):
    torch.manual_seed(0)
    model = build_model(name, tuple("abcdefgh"), 64).eval()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    maps = torch.stack([heat_maps(model, images, torch.full((2,), c)) for c in range(8)])
    assert maps.shape == (8, 2, 64, 64)
    assert maps.min() >= 0 and maps.max() == 1


def test_a_network_without_a_map_says_so():
    model = build_model("simple_cnn", ("a", "b"), 16).eval()
    model.network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 2))
    with pytest.raises(ValueError, match="maps of more than one place"):
        heat_maps(model, torch.zeros(1, 3, 16, 16, dtype=torch.uint8), torch.tensor([0]))


# The page


class Reader(html.parser.HTMLParser):
    """Tags, addresses and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.addresses, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "xlink:href")]

    def handle_data(self, data):
        self.words.append(data.strip())


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[str, float]:
    """A page of 20 classes and 600 images, and the seconds of a processor that it took."""
    folder = tmp_path_factory.mktemp("page")
    rng = np.random.default_rng(0)
    labels = np.arange(600) % 20
    ids = tuple(f"<b>{index}" for index in range(600))
    probs = draw_probs(3, labels, 20)
    # Labels that all members contradict.
    probs[:, :5] = 0.05 / 19
    probs[:, np.arange(5), (labels[:5] + 1) % 20] = 0.95
    results, predictions = [], {}
    for seed in range(3):
        predictions[MemberKey(seed)] = Predictions(
            ids=ids, probs=probs[seed], class_labels=NAMES, labels=labels
        )
        history = [
            {"epoch": n, "val_f1": 1 - 1 / n, "val_loss": 1 / n, "train_loss": 1 / n}
            for n in range(1, 31)
        ]
        results.append(
            SeedResult(
                seed=seed, stop_reason="patience", best_epoch=30, val_f1=0.9, num_epochs=30,
                seconds=60.0, session_seconds=60.0, history=history,
            )
        )  # fmt: skip
    dataset = Dataset(
        folder=folder,
        ids=ids,
        files=tuple(folder / "x.jpg" for _ in ids),
        labels=labels,
        classes=ClassList(labels=NAMES, names=NAMES, mirrors=(-1,) * 20),
        test_ids=(),
        test_files=(),
        problems=(),
    )
    images = np.stack(
        [np.asarray(draw_stripes(label, 20, 128, rng)).transpose(2, 0, 1) for label in labels]
    )
    loaded = LoadedData(
        dataset=dataset,
        images=torch.from_numpy(images),
        rows=np.arange(600),
        digest="0",
    )
    recipe = Recipe(image_size=128, model="simple_cnn", augmentation="pose")
    model = build_model("simple_cnn", NAMES, 128)
    (folder / "seed_0").mkdir()
    write_weights(folder / "seed_0" / "pose_cnn.pth", model.state_dict())
    write_card(folder / "seed_0" / "config.json", card_of(recipe))
    start = time.process_time()
    text = run_page("demo", recipe, loaded, results, look_at(predictions), folder)
    seconds = time.process_time() - start
    # To be looked at: pytest --basetemp says where.
    (folder / "report.html").write_text(text, encoding="utf-8")
    return text, seconds


def card_of(recipe: Recipe) -> ModelCard:
    return ModelCard(
        model="simple_cnn", image_size=128, labels=NAMES, names=NAMES, mirrors=(-1,) * 20,
        run="demo", seed=0, val_f1=0.9, best_epoch=30, dataset_digest="0",
        recipe=dataclasses.asdict(recipe),
    )  # fmt: skip


def test_a_page_is_small_and_quick(made):
    text, seconds = made
    assert len(text) < 5_000_000
    assert seconds < 10


def test_a_page_asks_nobody_for_anything(made):
    addresses = [a for a in Reader(made[0]).addresses if not a.startswith(("data:", "#"))]
    assert addresses == []
    assert "url(http" not in made[0] and "@import" not in made[0]


def test_names_are_shown_as_they_are(made):
    page = Reader(made[0])
    assert "script" not in page.tags and "b" in page.tags
    for name in NAMES[:2]:
        assert page.words.count(name) >= 3, "in the matrix, in the classes and in a gallery"
    assert any("<b>" in word for word in page.words), "ids are texts as well"


def test_a_page_has_its_parts_and_says_what_each_number_is_about(made):
    text = made[0]
    for part in ("Confusion", "Classes", "Most confident mistakes", "Members disagree most",
                 "Suspect labels", "Augmented training images", "Data", "Reliability",
                 "Risk and coverage", "Score over the number of members"):  # fmt: skip
        assert part in text
    assert text.count("<svg") == 6
    assert text.count("600 validation rows that no member trained on") >= 6
    assert len(re.findall('alt="heat map', text)) > 12
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text
