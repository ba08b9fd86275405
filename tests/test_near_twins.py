"""Images that look alike: found, counted, named, and kept together where that is asked."""

import csv
import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from entrypoints import data as data_entry
from pose.config import DataSetup, Recipe, Setup
from pose.data import near_twins, twin_search
from pose.data.near_twins import Marks, find_twins, marks_of
from pose.data.split import num_twins, split_rows
from pose.data.tensors import load_recipe_data
from pose.data.twin_search import kept_marks
from pose.display import NoDisplay
from pose.errors import InputError
from pose.member_key import MemberKey
from pose.named_runs import resolve_run
from pose.plan import make_plan
from pose.run import load_planned_data

NUM_SCENES = 60
NUM_COPIES = 8


def draw_scene(rng: np.random.Generator) -> Image.Image:
    """Soft blobs of colour, each time others."""
    blobs = rng.integers(0, 255, size=(12, 12, 3), dtype=np.uint8)
    return Image.fromarray(blobs).resize((48, 48), Image.Resampling.BICUBIC)


def copy_of(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Lighter or darker, of another size, and noisy."""
    lighter = ImageEnhance.Brightness(image).enhance(rng.uniform(0.85, 1.15))
    resized = lighter.resize((int(rng.integers(40, 60)),) * 2, Image.Resampling.BILINEAR)
    noise = rng.normal(0, 3, size=(resized.height, resized.width, 3))
    return Image.fromarray((np.asarray(resized) + noise).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """60 scenes of 8 near copies each, with a label drawn per scene: nothing can be learned.

    Of the 20 test images, 5 are copies of a scene too.
    """
    folder = tmp_path_factory.mktemp("copied")
    rng = np.random.default_rng(0)
    scenes = [draw_scene(rng) for _ in range(NUM_SCENES)]
    labels = rng.permutation(np.arange(NUM_SCENES) % 2)
    for part in ("train_images", "test_images"):
        (folder / part).mkdir()
    rows = ["id,label"]
    for number in range(NUM_SCENES * NUM_COPIES):
        scene = number % NUM_SCENES
        rows.append(f"{number},{labels[scene]}")
        copy_of(scenes[scene], rng).save(folder / "train_images" / f"{number}.jpg", quality=80)
    for number in range(20):
        image = copy_of(scenes[number] if number < 5 else draw_scene(rng), rng)
        image.save(folder / "test_images" / f"{1000 + number}.jpg")
    (folder / "train_solution.csv").write_text("\n".join(rows) + "\n")
    return folder


SCENES = np.arange(NUM_SCENES * NUM_COPIES) % NUM_SCENES


# Finding


def test_pairs_are_those_of_a_look_at_all_pairs():
    rng = np.random.default_rng(1)
    hashes = rng.integers(0, 2**63, size=600, dtype=np.uint64)
    for row in range(300):
        flipped = rng.choice(64, size=row % 13, replace=False).astype(np.uint64)
        bits = np.bitwise_or.reduce(np.uint64(1) << flipped, initial=0)
        hashes[300 + row] = hashes[row] ^ bits
    apart = np.bitwise_count(hashes[:, None] ^ hashes[None])
    twins = find_twins(Marks(hashes=hashes, thumbs=np.ones((600, 768), dtype=np.uint8)))
    found = set(map(tuple, twins.pairs.tolist()))
    near, far = (set(map(tuple, np.argwhere(np.triu(apart <= d, k=1)).tolist())) for d in (7, 10))
    assert len(near) >= 300 * 8 // 13
    assert near <= found <= far
    assert len(found - near) > 0.7 * len(far - near) > 0
    assert twins.distances.tolist() == apart[tuple(twins.pairs.T)].tolist()
    assert sorted(found) == list(map(tuple, twins.pairs.tolist()))


def test_a_crowd_of_equal_images_is_one_group_without_a_look_at_all_pairs(monkeypatch):
    monkeypatch.setattr(near_twins, "_WINDOW", 4)
    images = torch.full((50, 3, 16, 16), 200, dtype=torch.uint8)
    twins = find_twins(marks_of(images, np.arange(50)))
    assert len(twins.pairs) < 50 * 4
    assert set(twins.pairs.ravel().tolist()) == set(range(50))
    assert find_twins(marks_of(images, np.empty(0, dtype=np.int64))).pairs.shape == (0, 2)


def test_copies_are_found_and_nothing_else(copied):
    loaded = load_recipe_data(copied, Recipe(group_near_twins=True, image_size=32))
    twins = find_twins(kept_marks(loaded.images, loaded.folder))
    assert (SCENES[twins.pairs[:, 0]] == SCENES[twins.pairs[:, 1]]).all()
    alike = loaded.dataset.groups.joined(len(SCENES))
    whole = sum(len(set(alike[scene::NUM_SCENES])) == 1 for scene in range(NUM_SCENES))
    assert whole >= 0.95 * NUM_SCENES


def test_marks_are_made_once_kept_beside_the_images_and_made_anew_if_damaged(copied, monkeypatch):
    images = load_recipe_data(copied, Recipe(image_size=32))
    made = kept_marks(images.images, images.folder)
    path = images.folder / twin_search.MARKS

    def not_again(*args: object) -> Marks:
        raise AssertionError("marked a second time")

    with monkeypatch.context() as patch:
        patch.setattr(twin_search, "marks_of", not_again)
        kept = kept_marks(images.images, images.folder)
        assert (kept.hashes == made.hashes).all() and (kept.thumbs == made.thumbs).all()
    whole = path.read_bytes()
    half = len(whole) // 2
    for damaged in (b"", whole[:100], whole[:half] + b"?!" + whole[half + 2 :]):
        path.write_bytes(damaged)
        assert (kept_marks(images.images, images.folder).hashes == made.hashes).all()
        assert path.read_bytes() == whole


# What it is for


def score(loaded, recipe: Recipe) -> float:
    """1-nearest-neighbour on pixels."""
    pixels = loaded.images[loaded.rows].flatten(1).float()
    labels = loaded.dataset.labels
    train, val = split_rows(labels, recipe, MemberKey(0), loaded.dataset.groups)
    nearest = torch.cdist(pixels[val], pixels[train]).argmin(dim=1).numpy()
    return float((labels[train][nearest] == labels[val]).mean())


def test_a_score_is_inflated_by_near_twins_and_honest_with_groups(copied, tmp_path):
    """Labels are drawn, so that whatever is better than chance was remembered."""
    recipe = Recipe(image_size=32, val_fraction=0.4)
    assert score(load_recipe_data(copied, recipe), recipe) > 0.95
    grouped = Recipe(image_size=32, val_fraction=0.4, group_near_twins=True)
    assert score(load_recipe_data(copied, grouped), grouped) < 0.68
    named = tmp_path / "named"
    named.mkdir()
    (named / "train_images").symlink_to(copied / "train_images")
    (named / "train_solution.csv").write_bytes((copied / "train_solution.csv").read_bytes())
    rows = "".join(f"{number},{scene}\n" for number, scene in enumerate(SCENES))
    (named / "groups.csv").write_text(f"id,group\n{rows}")
    assert score(load_recipe_data(named, recipe), recipe) < 0.68


# Reports


def planned(copied, tmp_path, run: str | None = None, **overrides):
    """What a run has to say before it trains, and its data."""
    said = []

    class Display(NoDisplay):
        def say(self, text: str) -> None:
            said.append(text)

    setup = Setup(dataset=str(copied), output_root=str(tmp_path / "outputs"))
    plan = make_plan(resolve_run(run, None, {"image_size": 32, **overrides}), setup)
    return load_planned_data(plan, Display()), "\n".join(said)


def rows_of(loaded) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(loaded.twins.csv())))


def test_a_run_counts_and_names_twins_of_validation_and_test_images(copied, tmp_path):
    loaded, said = planned(copied, tmp_path)
    rows = rows_of(loaded)
    assert list(rows[0]) == ["id", "split", "twin_id", "twin_split", "distance"]
    train, val = split_rows(loaded.dataset.labels, Recipe(), MemberKey(0), loaded.dataset.groups)
    assert {row["id"] for row in rows if row["split"] == "val"} <= set(map(str, val))
    assert {row["twin_id"] for row in rows if row["split"] == "val"} <= set(map(str, train))
    assert all(SCENES[int(row["id"]) % 1000] == SCENES[int(row["twin_id"])] for row in rows)
    tests = [row for row in rows if row["split"] == "test"]
    assert [row["id"] for row in tests] == ["1000", "1001", "1002", "1003", "1004"]
    assert {row["twin_split"] for row in tests} <= {"train", "val"}
    num_val = len(rows) - 5
    assert num_val >= 0.95 * len(val)
    assert f"warning: {num_val} of the 96 images that validate seed 0 look like one that " in said
    report = loaded.dataset.report()
    assert f"near twins between training and validation: {num_val} of the 96 images" in report
    assert "5 of the 20 test images look like a labelled one: 1000 and " in report


def test_twins_that_are_grouped_no_longer_stand_between_training_and_validation(copied, tmp_path):
    for overrides in ({"group_near_twins": True}, {"group_near_twins": True, "folds": 3}):
        loaded, said = planned(copied, tmp_path, **overrides)
        assert {row["split"] for row in rows_of(loaded)} == {"test"}
        assert "look like" not in said
        recipe = Recipe(**overrides)
        for member in recipe.members((0,)):
            train, val = split_rows(loaded.dataset.labels, recipe, member, loaded.dataset.groups)
            assert num_twins(loaded.dataset.groups.alike, train, val) == 0


def test_folds_name_both_folds_and_frozen_runs_split_as_ever_and_say_it(copied, tmp_path):
    loaded, said = planned(copied, tmp_path, folds=3)
    splits = {
        (row["split"], row["twin_split"]) for row in rows_of(loaded) if "fold" in row["split"]
    }
    assert splits == {(f"fold {a}", f"fold {b}") for a in (1, 2, 3) for b in (1, 2, 3) if a != b}
    assert "images that validate the folds of seed 0 look like one that trains it" in said
    loaded, said = planned(copied, tmp_path, run="ensemble_1")
    assert "of the 96 images that validate seed 76 look like one that trains it" in said
    recipe = resolve_run("ensemble_1", None, {}).recipe
    frozen = split_rows(loaded.dataset.labels, recipe, MemberKey(76))
    found = split_rows(loaded.dataset.labels, recipe, MemberKey(76), loaded.dataset.groups)
    assert found[1].tolist() == frozen[1].tolist()


def test_the_check_of_a_folder_counts_twins_and_survives_one_that_cannot_be_split(
    copied, tmp_path, capsys
):
    data_entry.check(DataSetup(dataset=str(copied)), NoDisplay())
    out = capsys.readouterr().out
    assert "near twins between training and test: 5 of the 20 test images look" in out
    (tmp_path / "train_images").mkdir()
    for number in range(2):
        Image.new("RGB", (16, 16), (number, 90, 9)).save(
            tmp_path / "train_images" / f"{number}.png"
        )
    (tmp_path / "train_solution.csv").write_text("0,a\n1,b\n")
    data_entry.check(DataSetup(dataset=str(tmp_path)), NoDisplay())
    assert "no split: a class must have at least two images" in capsys.readouterr().out


def test_near_twins_are_part_of_the_identity_where_they_are_grouped():
    assert "group_near_twins" not in Recipe().identity()
    assert Recipe(group_near_twins=True).digest() != Recipe().digest()
    with pytest.raises(InputError, match="group_near_twins must go with keep_groups"):
        Recipe(group_near_twins=True, keep_groups=False)
