"""The service with requests that hold pictures: checks them, and hands them on as a canvas."""

from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import replace
from math import sqrt

from fastapi.exceptions import RequestValidationError
from PIL import Image as Pillow
from pydantic import ValidationError

from serve_app.canvas import Canvas, MaskIsEmpty, canvas_of
from serve_app.config import ModelConfig
from serve_app.errors import InvalidRequest
from serve_app.ingress.given import Given, GivenPictures
from serve_app.ingress.service import CanvasService
from serve_app.readings import Reading
from serve_app.schemas import (
    BatchResult,
    EmbeddingFile,
    Event,
    GenerateRequest,
    LoraFile,
    ModelInfo,
    ServedScheduler,
)
from serve_app.threads import Threads

_STRENGTH, _STRENGTH_OF_PART = 0.6, 1.0
_THREADS = 2
"""The pictures of so many requests are decoded at once: each may take hundreds of megabytes on the way."""
_STRETCH = 1.02
"""How much a picture may be stretched without a word: sizes are multiples of 8."""


def reading_threads() -> Threads:
    """Return the threads in which pictures are read."""
    return Threads(_THREADS, "pictures")


def usual_strength(*, masked: bool) -> float:
    """Return the default for a part of a picture, or for a whole one."""
    return _STRENGTH_OF_PART if masked else _STRENGTH


class WithPictures:
    """A model whose requests may hold pictures. All APIs share it: a picture is read in one way.

    `threads` are those of all models (`reading_threads`).
    """

    def __init__(self, service: CanvasService, given: GivenPictures, model: ModelConfig, threads: Threads) -> None:
        self._service = service
        self._given = given
        self._model = model
        self._threads = threads

    async def generate(self, request: GenerateRequest) -> BatchResult:
        return await self._service.generate(*await self._prepared(request))

    @asynccontextmanager
    async def stream(self, request: GenerateRequest) -> AsyncIterator[AsyncGenerator[Event]]:
        async with self._service.stream(*await self._prepared(request)) as events:
            yield events

    @asynccontextmanager
    async def open(self, request: GenerateRequest) -> AsyncIterator[Reading]:
        async with self._service.open(*await self._prepared(request)) as reading:
            yield reading

    async def hole(self, text: str, field: str) -> str:
        """Return a mask that marks what is transparent in a picture; both are as in requests. Raises ServiceError."""
        self._service.require_room(1)
        return await self._threads.run(self._given.hole, await self._given.found(text, field), field)

    async def text_in(self, text: str, field: str) -> str:
        """Return the text that programs have put into a picture, which is as in requests. Raises InvalidRequest."""
        return await self._threads.run(self._given.text, await self._given.found(text, field), field)

    async def _prepared(self, request: GenerateRequest) -> tuple[GenerateRequest, Canvas | None]:
        """Return a request with the hashes of its pictures instead of the pictures, and these as a canvas.

        Raises ServiceError or RequestValidationError.
        """
        if request.init_image is None:
            return request, None
        self._service.require_room(request.num_images if request.seeds is None else len(request.seeds))
        picture = await self._given.found(request.init_image, "init_image")
        mask = None if request.mask_image is None else await self._given.found(request.mask_image, "mask_image")
        # All in one: decoded pictures are large, and must not wait for a thread.
        return await self._threads.run(self._drawn, request, picture, mask)

    def _drawn(
        self, request: GenerateRequest, found: str | bytes, found_mask: str | bytes | None
    ) -> tuple[GenerateRequest, Canvas]:
        picture = self._given.picture(found, "init_image")
        mask = None if found_mask is None else self._given.mask(found_mask, "mask_image")
        request = self._completed(request, picture, mask)
        try:
            canvas = canvas_of(picture.image, mask.image if mask else None, request)
        except MaskIsEmpty:
            message = "mask_image: marks nothing to generate; it must be white there"
            raise InvalidRequest(message, "mask_image") from None
        return request, replace(canvas, warnings=_warnings(picture.image, request))

    def _completed(self, request: GenerateRequest, picture: Given, mask: Given | None) -> GenerateRequest:
        """Return a request with hashes instead of pictures, and with what it did not say about them."""
        width, height = self._size(request, picture.image)
        said = {
            **request.model_dump(exclude_unset=True),
            "init_image": picture.hash,
            **({"mask_image": mask.hash} if mask else {}),
            "strength": usual_strength(masked=mask is not None) if request.strength is None else request.strength,
            "width": width,
            "height": height,
        }
        try:
            return type(request).model_validate(said)
        except ValidationError as error:
            faults = error.errors()
            raise RequestValidationError([{**fault, "loc": ("body", *fault["loc"])} for fault in faults]) from error

    def _size(self, request: GenerateRequest, picture: Pillow.Image) -> tuple[int, int]:
        """Return the size of a request.

        That of its picture if the request does not say: its own within the model's bounds, otherwise one of the same
        shape and of about as many pixels as the model's default.
        """
        model, sides = self._model, (picture.width, picture.height)
        if request.model_fields_set & {"width", "height"}:
            return request.width, request.height
        if not all(model.min_size <= side - side % 8 <= model.max_size for side in sides):
            scale = sqrt(model.width * model.height / (sides[0] * sides[1]))
            sides = (int(sides[0] * scale), int(sides[1] * scale))
        width, height = (min(max(side - side % 8, model.min_size), model.max_size) for side in sides)
        return width, height

    def model(self) -> ModelInfo:
        return self._service.model()

    def known_model(self) -> ModelInfo | None:
        return self._service.known_model()

    def schedulers(self) -> list[ServedScheduler]:
        return self._service.schedulers()

    async def loras(self, among: Collection[str] | None = None) -> list[LoraFile]:
        return await self._service.loras(among)

    async def embeddings(self, among: Collection[str] | None = None) -> list[EmbeddingFile]:
        return await self._service.embeddings(among)


def _warnings(picture: Pillow.Image, request: GenerateRequest) -> tuple[str, ...]:
    shapes = sorted((picture.width / picture.height, request.width / request.height))
    if shapes[1] <= shapes[0] * _STRETCH:
        return ()
    given, wanted = f"{picture.width}x{picture.height}", f"{request.width}x{request.height}"
    return (f"init_image: {given} is stretched to {wanted}; leave out width and height to keep its shape",)
