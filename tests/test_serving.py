"""`mlflow models serve` of an ensemble, asked by a plain HTTP client what users would ask."""

import base64
import concurrent.futures
import contextlib
import csv
import http.client
import io
import json
import os
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

JPG = io.BytesIO()
Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)).save(
    JPG, "JPEG"
)
TEXT = base64.b64encode(JPG.getvalue()).decode()
PIXELS = np.random.default_rng(1).integers(0, 256, (9, 7, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def port(tmp_path_factory, saved_ensemble) -> Iterator[int]:
    """Of a server in a folder of its own, without the project."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number = probe.getsockname()[1]
    command = f"mlflow models serve -m {saved_ensemble} --env-manager local -p {number}"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with open(folder / "log", "w") as log:
        server = subprocess.Popen(
            command.split(), cwd=folder, stdout=log, stderr=log, env={**os.environ, "PATH": path}
        )
        try:
            deadline = time.monotonic() + 300
            while True:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", number)) == 0:
                        break
                assert server.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.1)
            yield number
        finally:
            server.terminate()
            server.wait()


def post(port: int, body: str | bytes, kind: str = "application/json") -> tuple[int, str]:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(client):
        client.request("POST", "/invocations", body, {"Content-Type": kind})
        answer = client.getresponse()
        return answer.status, answer.read().decode()


def inputs(value: object) -> str:
    return json.dumps({"inputs": value})


def table_of(column: str, texts: list[str]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows([[column], *([one] for one in texts)])
    return text.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + b"0" * 9)
    parts = (
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


ANSWERED = {
    "base64 in a list": (inputs([TEXT]), 1),
    "base64 alone": (inputs(TEXT), 1),
    "a batch": (inputs([TEXT] * 70), 70),
    "a data URL": (inputs([f"data:image/jpeg;base64,{TEXT}"]), 1),
    "TensorFlow's form": (inputs([{"b64": TEXT}]), 1),
    "a column": (inputs({"image": [TEXT, TEXT]}), 2),
    "whole numbers": (inputs([PIXELS.tolist()]), 1),
    "one array": (inputs(PIXELS.tolist()), 1),
    "floats, channels first": (inputs([(PIXELS / 255).transpose(2, 0, 1).tolist()]), 1),
    "grey": (inputs([PIXELS[:, :, 0].tolist()]), 1),
    "a mixture": (inputs([TEXT, PIXELS.tolist(), {"b64": TEXT}]), 3),
}
REFUSED = {
    "no base64": (inputs(["a*b"]), "image 1 cannot be read: base64 text was expected"),
    "no image": (inputs([TEXT, TEXT[:400] + "AAAA"]), "image 2 cannot be read"),
    "text as an image": (inputs([base64.b64encode(b"hello world!").decode()]), "not an image"),
    "a file of the server": (inputs([__file__]), "base64 text was expected"),
    "nothing": (inputs([]), "found an empty list"),
    "null": (inputs([None]), "found NoneType"),
    "a number": (inputs([7]), "was expected, found"),
    "unequal rows": (inputs([[[[1, 2, 3]], [[1]]]]), "rows of equal length"),
    "floats above 1": (inputs([(PIXELS * 1.0).tolist()]), "floats in 0..1 were expected"),
    "no numbers": (inputs([[["a"]]]), "numbers"),
    "a bomb": (inputs([base64.b64encode(png_that_claims(60000, 60000)).decode()]), "are claimed"),
    "megabytes of nothing": (inputs(["*" * 20_000_000]), "base64 text was expected"),
    "another key": (json.dumps({"images": [TEXT]}), "'inputs' key"),
    "rows of a table": (json.dumps({"dataframe_records": [{"image": TEXT}]}), "'inputs' key"),
    "a list": (json.dumps([TEXT[:40]]), "JSON dictionary"),
    "no JSON": ("{", "valid JSON"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ANSWERED)
def test_an_image_in_any_form_gets_a_name(port, kind):
    body, count = ANSWERED[kind]
    status, text = post(port, body)
    assert status == 200, text
    rows = json.loads(text)["predictions"]
    assert len(rows) == count
    for row in rows:
        assert (row["label"], row["name"]) in {("3", "three"), ("left", "L <b>")}
        assert row["p_3"] + row["p_left"] == pytest.approx(1)
        assert row["confidence"] == row[f"p_{row['label']}"]


def test_tables_are_answered(port):
    assert post(port, table_of("image", [TEXT, TEXT]), "text/csv")[0] == 200
    parquet = io.BytesIO()
    pd.DataFrame({"image": [JPG.getvalue()]}).to_parquet(parquet)
    status, text = post(port, parquet.getvalue(), "application/vnd.apache.parquet")
    assert status == 200, text


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_is_refused_in_one_sentence(port, kind):
    body, reason = REFUSED[kind]
    status, text = post(port, body)
    assert status == 400, text
    assert reason in json.loads(text)["message"]
    assert "Traceback" not in text and "stack_trace" not in text
    assert len(text) < 500


def test_a_file_that_is_posted_as_it_is_is_refused(port):
    status, text = post(port, JPG.getvalue(), "image/jpeg")
    assert status == 415
    assert "application/json" in text


def test_requests_at_once_get_the_answers_that_they_get_alone(port):
    bodies = [inputs([TEXT]), inputs([PIXELS.tolist()]), inputs(["*"])] * 4
    alone = [post(port, body) for body in bodies[:3]] * 4
    with concurrent.futures.ThreadPoolExecutor(8) as clients:
        assert list(clients.map(lambda body: post(port, body), bodies)) == alone
