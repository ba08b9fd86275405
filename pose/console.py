"""What a person watches while it works: progress bars on a terminal, plain lines in a log."""

import sys
import time

from tqdm import tqdm

from pose.config import Recipe, typed
from pose.display import BatchProgress
from pose.history import Row
from pose.member_key import MemberKey
from pose.reports.notes import p_text
from pose.results import Compared, Predicted, RunResult, SweepResult, Vote, spread


class Console:
    """Prints to standard output; bars go to standard error, and only to a terminal."""

    def __init__(self) -> None:
        self._has_bars = sys.stderr.isatty()
        # By what they show: members that train at the same time have one each.
        self._bars: dict[str, tqdm] = {}
        self._last_line = 0.0

    def say(self, text: str) -> None:
        """One line, above a bar that may be at work."""
        with tqdm.external_write_mode(file=sys.stdout):
            print(text, flush=True)

    def draw_progress(self, done: int, total: int) -> None:
        """Images of the demo data drawn."""
        self._advance("drawing the demo data", done, total)

    def cache_progress(self, done: int, total: int) -> None:
        """Images decoded."""
        self._advance("decoding images", done, total)

    def predict_progress(self, done: int, total: int) -> None:
        """Batches predicted."""
        self._advance("predicting", done, total)

    def check_progress(self, done: int, total: int) -> None:
        """Images checked."""
        self._advance("checking images", done, total)

    def start_seed(
        self, member: MemberKey, recipe: Recipe, num_epochs_done: int, time_limit: float | None
    ) -> BatchProgress:
        """A member begins or goes on; returns what to call after each batch."""
        limit = f"at most {recipe.num_epochs} epochs"
        if time_limit is not None:
            limit = f"for {time_limit:.0f} s"
        start = f", continued after epoch {num_epochs_done}" if num_epochs_done else ""
        self.say(f"{member}: {recipe.model} at {recipe.image_size} px, {limit}{start}")
        epoch = num_epochs_done + 1

        def progress(done: int, total: int) -> None:
            nonlocal epoch
            self._advance(f"{member} epoch {epoch}", done, total, unit="batch", is_quiet=True)
            epoch += done == total

        return progress

    def show_epoch(self, member: MemberKey, row: Row, best_epoch: int) -> None:
        """An epoch is complete: one line."""
        mark = " *" if best_epoch == row["epoch"] else ""
        self.say(
            f"{member} epoch {row['epoch']:>3}  "
            f"train loss {row['train_loss']:.4f} f1 {row['train_f1']:.4f}  "
            f"val loss {row['val_loss']:.4f} f1 {row['val_f1']:.4f}  "
            f"{row['epoch_seconds']:.1f} s, {row['images_per_second']:.0f} images/s{mark}"
        )

    def _advance(
        self, what: str, done: int, total: int, *, unit: str = "image", is_quiet: bool = False
    ) -> None:
        if not self._has_bars:
            # In a log: one line every ten seconds, and the last one, of whatever takes that long.
            now = time.monotonic()
            if not is_quiet and (done == total or now - self._last_line > 10):
                self._last_line = now
                self.say(f"{what}: {done} of {total}")
            return
        if what not in self._bars:
            self._bars[what] = tqdm(desc=what, total=total, unit=unit, leave=False, file=sys.stderr)
        self._bars[what].update(done - self._bars[what].n)
        if done >= total:
            self._bars.pop(what).close()

    def show_summary(self, result: RunResult) -> None:
        """A run is finished: mean, folder, and how to look at it."""
        scored = result.out_of_fold
        of = f"{len(result.members)} {'members' if scored else 'seeds'}"
        out_of_fold = ""
        if scored:
            seeds = spread([own["f1"] for own in scored.seeds.values()])
            out_of_fold = (
                f"\nout of fold, {len(scored.predictions.ids)} rows: macro F1 of a seed {seeds}, "
                f"of the ensemble {scored.ensemble['f1']:.4f}"
            )
        self.say(
            f"\nval_f1 of {of}: {result.val_f1()}{out_of_fold}"
            f"\nfiles: {result.folder}, report.html among them"
            f"\ncompare the seeds: mlflow ui, then {result.seeds_page}"
        )

    def show_sweep(self, sweep: SweepResult) -> None:
        """A sweep is over: its best trials, and how to train the best."""
        for trial in sweep.trials[:5]:
            values = ", ".join(f"{key}={typed(value)}" for key, value in trial.values.items())
            self.say(f"{trial.name}: {trial.val_f1 or trial.ending}  {values}")
        self.say(f"{len(sweep.trials)} trials: {sweep.folder / 'trials.csv'}")
        if sweep.command:
            self.say(
                "the best's score is flattering, since it was chosen by it; train it with new "
                f"seeds:\n{sweep.command}"
            )

    def show_vote(self, vote: Vote) -> None:
        """A vote is done: the honest score, the agreement, where the file is."""
        score = vote.score
        if vote.decision.note:
            self.say(f"voting: {vote.decision.note}")
        if score.reason:
            self.say(f"no validation score: {score.reason}")
        else:
            self.say(
                f"validation macro F1 {score.interval} on {score.rows_text()}; single members "
                f"{min(score.members):.4f} to {max(score.members):.4f}"
            )
        if vote.decision.abstention:
            self.say(f"ask: {vote.decision.abstention}")
        if len(vote.members) == 1:
            self.say("a single member: there is nobody to agree with")
        else:
            for member, share in zip(vote.members, vote.agreement, strict=True):
                self.say(f"{member.name} agrees with the ensemble on {share:.1%} of the images")
            self.say(f"all members agree on {vote.unanimity:.1%} of the images")
        self.say(f"predictions: {vote.out_path.absolute()}\nartifact: {vote.artifact}")

    def show_compared(self, compared: Compared) -> None:
        """A comparison is done: its sentence, and where the rest is."""
        result = compared.comparison
        self.say(
            f"{result.sentence()}"
            f"\nMcNemar's test: p {p_text(result.mcnemar.p_value)}"
            f"\nfiles: {compared.folder.absolute()}, report.html among them"
        )

    def show_predicted(self, predicted: Predicted) -> None:
        """A table is written."""
        self.say(
            f"{predicted.num_images} images, {predicted.images_per_second:.0f} images/s"
            f"\ntable: {predicted.out_path.absolute()}"
        )
