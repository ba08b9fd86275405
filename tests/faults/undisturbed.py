"""A small training that nothing disturbs, and what every other one must come to."""

import torch
from project import Project

NUM_EPOCHS = 12
# On one thread each, whoever trains them: weights depend on it.
SMALL = {
    "run": "ensemble_1",
    "num_epochs": NUM_EPOCHS,
    "image_size": 32,
    "batch_size": 16,
    "threads": 1,
}


def assert_same(project: Project, undisturbed: Project, *seeds: int) -> None:
    """One parent, one child per seed, every epoch once; weights and histories bit for bit."""
    (parent,) = project.runs("train")
    assert parent.data.tags["is_complete"] == "true"
    children = project.children(parent)
    assert sorted(child.data.tags["seed"] for child in children) == sorted(map(str, seeds))
    for child in children:
        assert child.info.status == "FINISHED"
        assert child.data.params["threads"] == "1"
        points = project.client().get_metric_history(child.info.run_id, "train_loss")
        assert [point.step for point in points] == list(range(1, NUM_EPOCHS + 1))
    for seed in seeds:
        ours, theirs = (
            torch.load(p.folder / f"outputs/ensemble_1/seed_{seed}/pose_cnn.pth", weights_only=True)
            for p in (project, undisturbed)
        )
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        histories = (p.history("ensemble_1", seed) for p in (project, undisturbed))
        for row, other in zip(*histories, strict=True):
            assert (row["train_loss"], row["val_loss"]) == (other["train_loss"], other["val_loss"])
