"""The history of one seed: the rows and columns of training_history.csv."""

# One epoch: a number for each of `COLUMNS`.
Row = dict[str, float]

# The first eight have the original's names.
COLUMNS = (
    "epoch",
    "train_loss",
    "train_acc",
    "train_f1",
    "val_loss",
    "val_acc",
    "val_f1",
    "learning_rate",
    "epoch_seconds",
    "images_per_second",
)
