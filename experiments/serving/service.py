"""The LitServe interface of the service: requests of several images, batched over requests."""

import base64
import binascii
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import litserve
from fastapi import HTTPException, Request, Response
from fastapi.responses import JSONResponse

from data.formats.encoded import UnreadableError

from ..protocols.image_sets import image_set
from .predictor import Predictor

FORM = 'send {"images": [...]}, a list of images in base64'


@dataclass(frozen=True)
class Settings:
    """Options of the service; see conf/serve.yaml."""

    checkpoint: str
    trust: Sequence[str]
    accelerator: str
    precision: str
    gallery: str | None
    top: int
    max_images: int


class Service(litserve.LitAPI):  # type: ignore[misc]
    """`POST /predict` with `{"images": [base64, ...]}` returns `{"results": [...]}`, one for each image.

    A request that cannot be answered gets status 400 and a sentence.
    """

    def __init__(self, settings: Settings, **options: Any):
        super().__init__(**options)
        self.settings = settings

    def setup(self, device: str) -> None:
        of = self.settings
        self.predictor = Predictor(of.checkpoint, of.trust, of.accelerator, of.precision, of.top)
        if of.gallery is not None:
            self.predictor.add_gallery(image_set(of.gallery, option="gallery"))

    def decode_request(self, request: Request) -> list[bytes]:
        """Return the encoded images of a request. Raise HTTPException with a sentence for one that does not fit."""
        content: Any = request  # LitServe wants this type, and passes the content
        images = content.get("images") if isinstance(content, Mapping) else None
        if not isinstance(images, list) or not images:
            raise HTTPException(400, FORM)
        if len(images) > self.settings.max_images:
            raise HTTPException(
                400, f"{len(images)} images are more than max_images={self.settings.max_images}; send several requests"
            )
        decoded = []
        for number, text in enumerate(images, 1):
            try:
                # Browsers put the kind of file before a comma.
                decoded.append(base64.b64decode(str(text).rpartition(",")[2], validate=True))
                self.predictor.check(decoded[-1])
            except binascii.Error:
                raise HTTPException(400, f"image {number} is not base64") from None
            except UnreadableError as error:
                raise HTTPException(400, f"image {number} cannot be read: {error.reason}") from None
        return decoded

    def batch(self, inputs: list[list[bytes]]) -> list[list[bytes]]:
        return inputs

    def predict(self, requests: Any) -> Any:
        """Embed the images of all requests together."""
        alone = isinstance(requests[0], bytes)  # LitServe calls neither `batch` nor `unbatch` for one at a time
        of_requests = [requests] if alone else requests
        found = iter(self.predictor.predict([image for images in of_requests for image in images]))
        results = [[next(found) for _ in images] for images in of_requests]
        return results[0] if alone else results

    def unbatch(self, output: list[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
        return output

    def encode_response(self, output: list[dict[str, Any]]) -> dict[str, Any]:
        return {"model": self.predictor.description, "results": output}


async def refuse_malformed(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
    """Answer a request whose body is no JSON with status 400 and a sentence; LitServe says that the server failed."""
    if request.method == "POST":
        kind = request.headers.get("Content-Type", "")
        if kind.startswith(("application/x-www-form-urlencoded", "multipart/form-data")):
            return JSONResponse({"detail": f"the body is a form; {FORM}, as Content-Type: application/json"}, 400)
        try:
            await request.json()
        except ValueError:  # malformed, or not UTF-8
            return JSONResponse({"detail": f"the body is not JSON; {FORM}"}, 400)
        except HTTPException as error:  # LitServe counts the bytes as they are read
            return JSONResponse({"detail": f"the request is more than max_mb; {error.detail}"}, error.status_code)
    return await answer(request)
