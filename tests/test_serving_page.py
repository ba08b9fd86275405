"""The page that `serve` shows, asked by a plain HTTP client."""

import base64
import io
import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
import uvicorn
from PIL import Image

from pose.config import ServeSetup
from pose.display import NoDisplay
from pose.errors import InputError
from pose.serving.app import MAX_BYTES, make_app, serve
from pose.tracking.models import load_model


@pytest.fixture(scope="module")
def address(saved_ensemble) -> Iterator[str]:
    app = make_app(load_model(str(saved_ensemble), "cpu"))
    with socket.create_server(("127.0.0.1", 0)) as place:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [place]})
        thread.start()
        yield f"http://127.0.0.1:{place.getsockname()[1]}"
        server.should_exit = True
        thread.join()


def ask(address: str, body: bytes | None = None) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, body), timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_the_page_asks_nobody_else(address):
    status, page = ask(address)
    assert status == 200
    assert "Drop an image here" in page
    assert "//" not in page.replace("// Names come from data", "")
    assert "innerHTML" not in page


def test_an_image_gets_names_and_probabilities(address, stripes):
    data = (stripes / "train_images" / "0.jpg").read_bytes()
    status, text = ask(f"{address}/predict", data)
    assert status == 200
    answer = json.loads(text)
    assert answer["name"] == answer["classes"][0]["name"]
    assert {one["name"] for one in answer["classes"]} == {"three", "L <b>"}
    assert answer["confidence"] == answer["classes"][0]["prob"] >= 0.5
    assert answer["ask"] is True
    scheme, _, picture = answer["heat"].partition(",")
    assert scheme == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(picture))).size == (24, 24)
    about = json.loads(ask(f"{address}/about")[1])
    assert (about["num_members"], about["names"]) == (2, ["three", "L <b>"])


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"", 400, "an empty file"),
        (b"no image", 400, "not an image"),
        (b"\xff\xd8\xff" + bytes(99), 400, "cannot be read"),
        (bytes(MAX_BYTES + 1), 413, "at most 50 MB"),
    ],
)
def test_what_is_no_image_is_refused_in_one_sentence(address, body, status, reason):
    found, text = ask(f"{address}/predict", body)
    assert found == status
    assert reason in json.loads(text)["error"]
    assert "Traceback" not in text


def test_a_port_that_is_taken_is_one_line(saved_ensemble):
    with socket.create_server(("127.0.0.1", 0)) as place:
        port = place.getsockname()[1]
        with pytest.raises(InputError, match=f"port must be free on 127.0.0.1, got {port}"):
            serve(ServeSetup(model=str(saved_ensemble), port=port), NoDisplay())
