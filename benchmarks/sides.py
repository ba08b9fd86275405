"""Two or more sides of a comparison, each in its own process, measured in turn.

A side that waits is stopped with its workers (SIGSTOP): nothing of it decodes ahead or takes a
core while another side is measured. Own processes also keep one side's allocator settings, thread
pools and caches from the other.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

# Makes an iterator whose first item is reached after set-up and warm-up and is dropped; each
# further item is one measurement. Must be picklable: a module's function or a partial of one.
Side = Callable[[], Iterator[Any]]


def measure_in_turn(sides: Mapping[str, Side], num_turns: int) -> dict[str, list[Any]]:
    """`num_turns` measurements of each side, turn by turn in the order of `sides`.

    Raises:
        RuntimeError: a side failed; its traceback is on stderr.
    """
    # Ends through the cleanup below: a side that waits would otherwise stay stopped for ever.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    context = multiprocessing.get_context("spawn")
    measured: dict[str, list[Any]] = {name: [] for name in sides}
    running = {}
    try:
        for name, side in sides.items():
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(side, theirs))
            process.start()
            theirs.close()
            running[name] = (process, ours)
            ours.recv()  # it leads its own process group now
            _signal(process, signal.SIGSTOP)
        for turn in range(num_turns + 1):
            for name, (process, connection) in running.items():
                _signal(process, signal.SIGCONT)
                connection.send(None)
                try:
                    value = connection.recv()
                except EOFError:
                    process.join()
                    raise RuntimeError(
                        f"the side {name!r} ended with exit code {process.exitcode}, see above"
                    ) from None
                _signal(process, signal.SIGSTOP)
                if turn > 0:
                    measured[name].append(value)
                    print(f"  turn {turn} of {num_turns}, {name}: {_short(value)}", flush=True)
    finally:
        for process, _ in running.values():
            with contextlib.suppress(ProcessLookupError):
                _signal(process, signal.SIGKILL)
            process.join()
    return measured


def _signal(process: BaseProcess, number: signal.Signals) -> None:
    """Send a signal to a side and its workers."""
    assert process.pid is not None
    os.killpg(process.pid, number)


def _serve(side: Side, connection: Connection) -> None:
    os.setsid()
    connection.send(None)
    measurements = side()
    while True:
        connection.recv()
        connection.send(next(measurements))


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(item)}" for key, item in value.items())
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value) if isinstance(value, int | str) else f"{len(value)} values"
