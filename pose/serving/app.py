"""The server behind the page."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse

from pose.config import ServeSetup
from pose.device import pick_device
from pose.display import Display
from pose.errors import InputError
from pose.reports.page import heat_uri
from pose.tracking.models import LoadedModel, load_model
from pose_models.predictor import Pixels, Predictor

PAGE = Path(__file__).with_name("page.html")
# The largest photographs of phones take 40 MB.
MAX_BYTES = 50_000_000
# The page is all in one file, and asks nobody else for anything.
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src blob: data:; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
}


def serve(setup: ServeSetup, display: Display) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        InputError: no such model, or the port is taken.
    """
    assert setup.model
    place = _listen(setup.host, setup.port)
    with place:
        model = load_model(setup.model, str(pick_device(setup.device)))
        server = uvicorn.Server(uvicorn.Config(make_app(model), log_level="warning"))
        display.say(f"model: {model.uri}\npage: http://{setup.host}:{place.getsockname()[1]}/")
        server.run(sockets=[place])


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port))
    except OSError as error:
        raise InputError(
            f"port must be free on {host}, got {port} ({error.strerror or error}): choose another"
        ) from error


def make_app(model: LoadedModel) -> FastAPI:
    """The page at `/`, and `/predict`, which takes the bytes of an image file."""
    app = FastAPI(title="pose", docs_url=None, redoc_url=None, openapi_url=None)
    config = model.predictor.config

    @app.get("/")
    def page() -> HTMLResponse:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers=HEADERS)

    @app.get("/about")
    def about() -> dict[str, Any]:
        names = list(config.names)
        return {"model": model.uri, "num_members": len(config.decodings), "names": names}

    @app.post("/predict")
    async def predict(request: Request) -> JSONResponse:
        data = bytearray()
        async for part in request.stream():
            data += part
            if len(data) > MAX_BYTES:
                message = f"an image must have at most {MAX_BYTES // 1_000_000} MB"
                return JSONResponse({"error": message}, 413)
        status, answer = await asyncio.to_thread(_answer, model.predictor, bytes(data))
        return JSONResponse(answer, status)

    return app


def _answer(predictor: Predictor, data: bytes) -> tuple[int, dict[str, Any]]:
    """HTTP status and what the page shows: the classes by probability, highest first."""
    pixels = predictor.read([data])
    if pixels.bad:
        return 400, {"error": f"the image cannot be read: {pixels.bad[0]}"}
    answer = predictor.predict(pixels)
    config = predictor.config
    probs, pred = answer.probs[0], int(answer.preds[0])
    order = probs.argsort(kind="stable")[::-1]
    confidence = float(answer.confidence[0])
    return 200, {
        "label": config.labels[pred],
        "name": config.names[pred],
        "confidence": confidence,
        "ask": config.ask_below is not None and confidence < config.ask_below,
        "disagreement": float(answer.disagreement[0]),
        "classes": [{"name": config.names[i], "prob": float(probs[i])} for i in order],
        "heat": _heat(predictor, pixels, answer.preds),
    }


def _heat(predictor: Predictor, pixels: Pixels, preds: np.ndarray) -> str:
    """The image under what the first member looked at, as a data URI; empty where it has none."""
    try:
        heat = predictor.heat_maps(pixels, preds)[0]
    except ValueError:
        return ""
    image = predictor.first_images(pixels)[0].permute(1, 2, 0).numpy()
    return heat_uri(image, heat)
