"""Two commands at once: on a store that is not there yet, of one name, of one run, on one cache."""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from benchmarks.faults.audit import read_facts
from benchmarks.faults.lab import RUN, Attempt, Done, Lab
from benchmarks.faults.outcome import Outcome, Try


def pairs(lab: Lab, count: int) -> Iterator[Try]:
    """Every kind of pair, `count` times."""
    kinds: dict[str, Callable[[Lab, str], Outcome]] = {
        "two runs on a new store, `python -m`": _new_store,
        "two runs on a new store, `mlflow run`, set up before": _new_store_of_mlflow,
        "one name twice": _one_name,
        "one run into two folders": _one_run,
        "one cache": _one_cache,
        "a vote while its run trains": _vote_meanwhile,
    }
    for place, (fault, kind) in enumerate(kinds.items()):
        for number in range(count):
            run = partial(kind, lab, f"pair_{place}_{number}")
            yield Try(fault=fault, name=str(number), run=run)


def _both(attempt: Attempt, commands: Sequence[list[str]]) -> list[Done]:
    """Start the commands at once, in processes of their own, and wait for all."""
    logs = [f"both_{number}.txt" for number in range(len(commands))]
    processes = [
        attempt.launch(command, log=log, is_real=True)
        for command, log in zip(commands, logs, strict=True)
    ]
    return [attempt.finish(*both) for both in zip(processes, logs, strict=True)]


def _end(attempt: Attempt, done: Sequence[Done], problems: Sequence[str]) -> Outcome:
    """The outcome of a pair: each whole, or refused in one line."""
    found = [*problems]
    refused = [one for one in done if one.code]
    for one in refused:
        if one.code != 2 or one.text.count("Traceback"):
            found.append(f"exit code {one.code}: {one.said()}"[:300])
    if len(refused) == len(done):
        found.append("both were refused")
    if not found:
        attempt.remove()
    return Outcome(said=refused[0].said() if refused else "both finish", problems=tuple(found))


def _whole(attempt: Attempt, run: str) -> list[str]:
    """How a run of another name or folder differs from the undisturbed one."""
    differences = read_facts(attempt.folder, run).differences(attempt.lab.reference)
    # Its name is in its card, and so in the digest of that file alone.
    return [f"{run}: {text}" for text in differences if "another config.json" not in text]


def _new_store(lab: Lab, name: str) -> Outcome:
    attempt = Attempt(lab, name, has_store=False)
    runs = ("one", "two")
    done = _both(attempt, [attempt.training(run_name=run) for run in runs])
    problems = [
        text for run, one in zip(runs, done, strict=True) if not one.code
        for text in _whole(attempt, run)
    ]  # fmt: skip
    return _end(attempt, done, problems)


def _new_store_of_mlflow(lab: Lab, name: str) -> Outcome:
    attempt = Attempt(lab, name, has_store=False)
    made = attempt.do([sys.executable, "-m", "entrypoints.store"], "made.txt")
    runs = ("one", "two")
    done = _both(attempt, [attempt.through_mlflow(run_name=run) for run in runs])
    problems = [] if made.code == 0 else [made.said()]
    problems += [text for run in runs for text in _whole(attempt, run)]
    return _end(attempt, done, problems)


def _one_name(lab: Lab, name: str) -> Outcome:
    attempt = Attempt(lab, name)
    done = _both(attempt, [attempt.training()] * 2)
    return _end(attempt, done, _whole(attempt, RUN))


def _one_run(lab: Lab, name: str) -> Outcome:
    """As from another terminal, or by two people on one store."""
    attempt = Attempt(lab, name)
    done = _both(attempt, [attempt.training(output_root=root) for root in ("outputs", "others")])
    if done[0].code:  # the other came first
        (attempt.folder / "outputs").rename(attempt.folder / "refused")
        (attempt.folder / "others").rename(attempt.folder / "outputs")
    return _end(attempt, done, _whole(attempt, RUN))


def _one_cache(lab: Lab, name: str) -> Outcome:
    attempt = Attempt(lab, name)
    done = _both(attempt, [attempt.training(run_name=run) for run in ("one", "two")])
    problems = [text for run in ("one", "two") for text in _whole(attempt, run)]
    if built := len(list(attempt.folder.glob("cache/*/index.json"))) - 1:
        problems.append(f"{built + 1} caches")
    return _end(attempt, done, problems)


def _vote_meanwhile(lab: Lab, name: str) -> Outcome:
    attempt = Attempt(lab, name)
    attempt.do(attempt.training())
    vote = [sys.executable, "-m", "entrypoints.ensemble", "--run", RUN, "--dataset", str(lab.data)]
    alone = attempt.do([*vote, "--out_path", "alone.csv"], "alone.txt")
    # The same run once more: a run of its own, which must not vote before it is whole.
    train = attempt.training(num_epochs=2)
    done = _both(attempt, [train, [*vote, "--out_path", "meanwhile.csv"]])
    problems = [] if alone.code == 0 else [alone.said()]
    texts = [(attempt.folder / f"{name}.csv").read_text() for name in ("alone", "meanwhile")]
    if texts[0] != texts[1] or done[1].code:
        problems.append(f"another vote: {done[1].said()}"[:300])
    outcome = _end(attempt, done, problems)
    return dataclasses.replace(outcome, said="the whole run votes, the other trains on")
