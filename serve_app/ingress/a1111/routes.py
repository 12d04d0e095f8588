"""The routes of A1111's API."""

from collections.abc import Awaitable, Callable, Collection
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from serve_app.config import AppArgs
from serve_app.errors import NotReady
from serve_app.ingress.a1111 import settings
from serve_app.ingress.a1111.answers import answer_of, png_info_of
from serve_app.ingress.a1111.errors import DIALECT
from serve_app.ingress.a1111.jobs import Jobs, owner_of
from serve_app.ingress.a1111.requests import NAMES, body_class, own_request, warnings_of
from serve_app.ingress.a1111.samplers import SCHEDULE_LIST, sampler_list
from serve_app.ingress.a1111.schemas import (
    EmbeddingCard,
    EmbeddingCards,
    ImagesAnswer,
    Img2Img,
    LoraCard,
    PngInfo,
    PngInfoBody,
    Progress,
    Sampler,
    Schedule,
    SdModel,
    Txt2Img,
    Upscaler,
)
from serve_app.ingress.large_json import in_pieces
from serve_app.ingress.requests import renamed
from serve_app.ingress.service import Service
from serve_app.prompt_embeddings import words_in
from serve_app.recipe import SchedulerName
from serve_app.samplers import SAMPLERS
from serve_app.schemas import GenerateRequest

TextIn = Callable[[str, str], Awaitable[str]]
"""Returns the text in a picture, which a field holds."""


def router(service: Service, request: type[GenerateRequest], args: AppArgs, text_in: TextIn) -> APIRouter:
    """Return the routes of one service with requests of type `request`."""
    routes, jobs, errors = APIRouter(prefix="/sdapi/v1"), Jobs(), DIALECT.responses
    Text, Picture = body_class(Txt2Img, request), body_class(Img2Img, request)  # noqa: N806 - classes, created for this service
    refusals = errors(413, 415, 422, 429, 503, 504)

    async def answer(body: Txt2Img, http: Request) -> Response:
        settings.check(body.override_settings, service.model(), args.model.path, "override_settings")
        words = words_in(body.prompt, body.negative_prompt)
        names = [one.name for one in await service.embeddings(words) if not one.unusable]
        asked = own_request(body, request, args.limits.max_images, names)
        with renamed(NAMES), jobs.one(owner_of(http)) as job:
            async with service.stream(asked) as events:
                start = await job.follow(events)
        return StreamingResponse(
            in_pieces(answer_of(body, start, job, warnings_of(body))), media_type="application/json"
        )

    @routes.post("/txt2img", response_model=ImagesAnswer, responses=refusals)
    async def txt2img(body: Text, http: Request) -> Response:  # type: ignore[valid-type]  # a class made at run time
        """Generate n_iter x batch_size images in parallel."""
        return await answer(body, http)

    @routes.post("/img2img", response_model=ImagesAnswer, responses=refusals)
    async def img2img(body: Picture, http: Request) -> Response:  # type: ignore[valid-type]  # as above
        """Go on from a picture, or generate a part of it anew."""
        return await answer(body, http)

    @routes.get("/progress", responses=errors(422))
    async def progress(http: Request, skip_current_image: bool = False) -> Progress:
        """Return how far the requests of this client are on this ingress replica, and the picture that is forming."""
        return jobs.progress_of(owner_of(http), with_picture=not skip_current_image)

    @routes.post("/interrupt", responses=errors(503))
    async def interrupt(http: Request) -> dict[str, Any]:
        """Cancel the requests of this client on this ingress replica; what there is by then is their answer."""
        for id in jobs.ids_of(owner_of(http)):
            await service.cancel(id)
        return {}

    @routes.post("/png-info", responses=errors(413, 415, 422))
    async def png_info(body: PngInfoBody) -> PngInfo:
        """Return the text that programs have put into a picture."""
        return png_info_of(await text_in(body.image, "image"))

    @routes.get("/options", responses=errors(503))
    async def options() -> dict[str, Any]:
        """Return the settings in effect."""
        return settings.options_of(service.model())

    @routes.post("/options", responses=errors(413, 415, 422, 503))
    async def set_options(body: dict[str, Any]) -> None:
        """Accept settings that are in effect, and refuse others: what is served does not change by a request."""
        settings.check(body, service.model(), args.model.path)

    @routes.get("/sd-models", responses=errors(503))
    async def sd_models() -> list[SdModel]:
        """List the served model."""
        return [settings.card_of(service.model())]

    @routes.get("/samplers")
    async def samplers() -> list[Sampler]:
        """List the samplers that the served model takes; all before it is loaded."""
        try:
            names: Collection[SchedulerName] = {scheduler.name for scheduler in service.schedulers()}
        except NotReady:
            names = SAMPLERS
        return sampler_list(names)

    @routes.get("/loras")
    async def loras() -> list[LoraCard]:
        """List the LoRAs that prompts may name."""
        return [LoraCard(name=lora.name, alias=lora.name, path=lora.name) for lora in await service.loras()]

    @routes.get("/embeddings")
    async def embeddings() -> EmbeddingCards:
        """List the embeddings that prompts may name."""
        cards: dict[bool, dict[str, EmbeddingCard]] = {True: {}, False: {}}
        for one in await service.embeddings():
            cards[one.unusable is None][one.name] = EmbeddingCard(vectors=one.tokens)
        return EmbeddingCards(loaded=cards[True], skipped=cards[False])

    _add_lists(routes)
    return routes


def _add_lists(routes: APIRouter) -> None:
    """Add the routes that list what never changes."""

    @routes.get("/schedulers")
    async def schedulers() -> list[Schedule]:
        """List the schedules of samplers."""
        return SCHEDULE_LIST

    @routes.get("/upscalers")
    async def upscalers() -> list[Upscaler]:
        """List the upscalers: none."""
        return [Upscaler(name="None")]

    @routes.get("/latent-upscale-modes")
    async def latent_upscale_modes() -> list[Upscaler]:
        """List the ways to upscale latents: none."""
        return []

    @routes.get("/sd-vae")
    async def vaes() -> list[SdModel]:
        """List the VAEs that can be chosen: none."""
        return []
