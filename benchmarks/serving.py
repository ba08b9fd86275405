"""Images per second of a served ensemble, beside the same members in a vote.

The vote predicts images that are decoded already, as `mlflow run . -e ensemble` does. The server is
`mlflow models serve`, asked by two clients at a time with JPGs as base64; its rate includes
decoding, JSON and HTTP. The weights are random: they do not change the time.

    python -m benchmarks.serving
"""

import argparse
import base64
import concurrent.futures
import functools
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from mlflow.models import Model

from benchmarks import ours, report
from benchmarks.sides import measure_in_turn
from pose.data.cache import open_cache
from pose.device import keep_freed_memory, pick_precision
from pose.tracking import flavors, packaging
from pose.training.predict import predict_logits
from pose_models import Framing, ImageClassifier, SeedEnsemble, build_model, for_inference
from pose_models.decode import read_image
from pose_models.predictor import PredictorConfig

IMAGE_SIZE = 128
LABELS = ("0", "1")
BATCH_SIZE = 64
NUM_CLIENTS = 2
NUM_SINGLE = 200


def members_of(num_members: int) -> list[ImageClassifier]:
    """Networks with random weights, in evaluation mode."""
    members = [build_model("simple_cnn", LABELS, IMAGE_SIZE) for _ in range(num_members)]
    for member in members:
        member.eval()
    return members


def vote_side(files: Sequence[Path], num_members: int) -> Iterator[float]:
    """Images per second through all members, from the decoded cache."""
    keep_freed_memory()
    precision = pick_precision("auto", torch.device("cpu"))
    models = [
        for_inference(m).to(memory_format=torch.channels_last) for m in members_of(num_members)
    ]
    with tempfile.TemporaryDirectory() as root:
        images = open_cache(files, IMAGE_SIZE, cache_root=Path(root)).images
        rows = torch.arange(len(files))
        while True:
            started = time.perf_counter()
            for model in models:
                predict_logits(model, images, rows, precision)
            yield len(files) / (time.perf_counter() - started)


def served_side(files: Sequence[Path], num_members: int) -> Iterator[dict[str, float]]:
    """Images per second over HTTP in two forms, and the time of single images in milliseconds."""
    data = [path.read_bytes() for path in files]
    texts = [base64.b64encode(one).decode() for one in data]
    arrays = [read_image(one, IMAGE_SIZE).transpose(1, 2, 0).tolist() for one in data[:BATCH_SIZE]]
    batches = [_body(texts[i : i + BATCH_SIZE]) for i in range(0, len(texts), BATCH_SIZE)]
    tensors = [_body(arrays)] * 4
    with tempfile.TemporaryDirectory() as folder, _served(Path(folder), num_members) as port:
        while True:
            ask = functools.partial(_ask, port)
            seconds = [_timed(ask, _body([text])) for text in texts[:NUM_SINGLE]]
            yield {
                "base64": len(texts) / _timed(_ask_all, port, batches),
                "tensors": len(tensors) * len(arrays) / _timed(_ask_all, port, tensors),
                "p50": 1000 * float(np.quantile(seconds, 0.5)),
                "p99": 1000 * float(np.quantile(seconds, 0.99)),
            }


def _body(images: Sequence[object]) -> bytes:
    return json.dumps({"inputs": images}).encode()


def _timed(call: Callable[..., object], *arguments: object) -> float:
    started = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - started


def _ask(port: int, body: bytes) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("POST", "/invocations", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    text = answer.read()
    assert answer.status == 200, text[:200]
    connection.close()


def _ask_all(port: int, bodies: Sequence[bytes]) -> None:
    with concurrent.futures.ThreadPoolExecutor(NUM_CLIENTS) as clients:
        list(clients.map(functools.partial(_ask, port), bodies))


class _served:
    """`mlflow models serve` of an ensemble that is saved in `folder`; gives its port."""

    def __init__(self, folder: Path, num_members: int) -> None:
        self.folder = folder
        self.num_members = num_members

    def __enter__(self) -> int:
        save_ensemble(self.folder / "model", self.num_members)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local"]
        command += ["-m", str(self.folder / "model"), "-p", str(port)]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        log = open(self.folder / "log", "w")
        self.process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, "PATH": path}
        )
        for _ in range(600):
            time.sleep(0.2)
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return port
            assert self.process.poll() is None, (self.folder / "log").read_text()
        raise TimeoutError("the server does not answer")

    def __exit__(self, *error: object) -> None:
        self.process.terminate()
        self.process.wait()


def save_ensemble(folder: Path, num_members: int) -> None:
    """Save an ensemble as votes are saved."""
    framing = Framing(size=IMAGE_SIZE)
    config = PredictorConfig(
        labels=LABELS, names=LABELS, decodings=((framing, True),) * num_members
    )
    ensemble = SeedEnsemble(members_of(num_members)).eval()
    with tempfile.TemporaryDirectory() as staging:
        flavors.save_model(
            str(folder),
            Model(),
            ensemble,
            config,
            code_paths=[str(packaging.stage_code(Path(staging)))],
            pip_requirements=packaging.requirements(ensemble),
            serialization_format="pickle",
        )


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ours.add_dataset_option(parser)
    parser.add_argument("--num-images", type=int, default=1024)
    parser.add_argument("--num-members", type=int, default=3)
    parser.add_argument("--num-turns", type=int, default=5)
    report.add_options(parser, "serving")
    args = parser.parse_args()
    with ours.data_folder(args.dataset, args.num_images) as folder:
        files = ours.image_paths(folder)[: args.num_images]
        measured = measure_in_turn(
            {
                "vote": functools.partial(vote_side, files, args.num_members),
                "served": functools.partial(served_side, files, args.num_members),
            },
            args.num_turns,
        )
    votes = measured["vote"]
    served = {key: [turn[key] for turn in measured["served"]] for key in measured["served"][0]}
    share = [100 * ratio for ratio in report.ratios(served["base64"], votes)]
    rows = [["a vote, from decoded images", report.spread(votes), "100"]]
    for key, text in (("base64", "served, JPGs as base64"), ("tensors", "served, JSON numbers")):
        shares = [100 * ratio for ratio in report.ratios(served[key], votes)]
        rows.append([text, report.spread(served[key]), report.spread(shares)])
    report.write_report(
        args.report,
        title="A served ensemble",
        module="benchmarks.serving",
        repetitions=f"{args.num_turns} turns in alternation, the waiting side stopped; each turn "
        f"{len(files)} images through {args.num_members} members of simple_cnn in requests of "
        f"{BATCH_SIZE} from {NUM_CLIENTS} clients; median (lowest-highest)",
        goals=[
            report.Goal(
                text="at least 85 % of a vote's rate over HTTP",
                measured=f"{report.spread(share)} %",
                is_reached=statistics.median(share) >= 85,
            )
        ],
        tables=[
            report.Table(columns=("", "images/s through all members", "% of the vote"), rows=rows),
            report.Table(
                title=f"One image per request, {NUM_SINGLE} requests one after the other",
                columns=("", "milliseconds"),
                rows=[[name, report.spread(served[name], 1)] for name in ("p50", "p99")],
            ),
        ],
    )


if __name__ == "__main__":
    main()
