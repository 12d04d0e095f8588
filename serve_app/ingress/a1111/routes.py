"""The routes of A1111's API."""

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from serve_app.errors import NotReady
from serve_app.ingress.a1111 import settings
from serve_app.ingress.a1111.answers import answer_of, png_info_of
from serve_app.ingress.a1111.errors import DIALECT
from serve_app.ingress.a1111.jobs import Jobs, owner_of
from serve_app.ingress.a1111.prompts import loras_in
from serve_app.ingress.a1111.requests import NAMES, Form, body_class, own_request, warnings_of
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
from serve_app.ingress.offers import Bodies, Offer, Offers
from serve_app.ingress.requests import renamed
from serve_app.ingress.service import Service
from serve_app.prompt_embeddings import words_in
from serve_app.recipe import SchedulerName
from serve_app.samplers import SAMPLERS

_OVERRIDDEN = "override_settings"


def router(service: Service, offers: Offers) -> APIRouter:
    """Return the routes of a service with these models."""
    routes, jobs, errors = APIRouter(prefix="/sdapi/v1"), Jobs(), DIALECT.responses
    texts, pictures = _bodies(Txt2Img, offers), _bodies(Img2Img, offers)
    Text, Picture = texts.annotation, pictures.annotation  # noqa: N806 - classes, created for this service
    refusals = errors(413, 415, 422, 429, 503, 504)

    async def answer(body: Txt2Img, offer: Offer, http: Request) -> Response:
        settings.check(body.override_settings, offer, _OVERRIDDEN)
        edits = (prompt.replace(":", " ") for prompt in (body.prompt, body.negative_prompt))
        words = words_in(*edits)
        names = [one.name for one in await offer.service.embeddings(words) if not one.unusable]
        plain = {name for name in loras_in(body.prompt) if "/" not in name}
        loras = [one.name for one in await offer.service.loras(plain)] if plain else []
        asked = own_request(body, offer, names, loras)
        with renamed(NAMES), jobs.one(owner_of(http)) as job:
            async with offer.service.stream(asked) as events:
                start = await job.follow(events)
        return StreamingResponse(
            in_pieces(answer_of(body, start, job, warnings_of(body))), media_type="application/json"
        )

    @routes.post("/txt2img", response_model=ImagesAnswer, responses=refusals)
    async def txt2img(body: Text, http: Request) -> Response:  # type: ignore[valid-type]  # a class made at run time
        """Generate n_iter x batch_size images in parallel."""
        return await answer(body, texts.offer_of(body), http)

    @routes.post("/img2img", response_model=ImagesAnswer, responses=refusals)
    async def img2img(body: Picture, http: Request) -> Response:  # type: ignore[valid-type]  # as above
        """Go on from a picture, or generate a part of it anew."""
        return await answer(body, pictures.offer_of(body), http)

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
        return png_info_of(await offers.default.service.text_in(body.image, "image"))

    @routes.get("/options", responses=errors(503))
    async def options() -> dict[str, Any]:
        """Return the settings in effect: those of the default model."""
        return settings.options_of(offers.default.service.model())

    @routes.post("/options", responses=errors(413, 415, 422, 503))
    async def set_options(body: dict[str, Any]) -> None:
        """Accept settings that are in effect, and refuse others: what is served does not change by a request."""
        settings.check(body, offers.default)

    @routes.get("/sd-models", responses=errors(503))
    async def sd_models() -> list[SdModel]:
        """List the served models, the default first. Those that have never been loaded are left out."""
        return settings.cards_of(offers)

    @routes.get("/samplers")
    async def samplers() -> list[Sampler]:
        """List the samplers that the served models take; all before one is loaded."""
        names: set[SchedulerName] = set()
        for offer in offers:
            with suppress(NotReady):
                names |= {scheduler.name for scheduler in offer.service.schedulers()}
        return sampler_list(names or SAMPLERS)

    @routes.get("/loras")
    async def loras() -> list[LoraCard]:
        """List the LoRAs that prompts may name, those of all models."""
        names = {lora.name: None for offer in offers for lora in await offer.service.loras()}
        return [LoraCard(name=name, alias=name, path=name) for name in names]

    @routes.get("/embeddings")
    async def embeddings() -> EmbeddingCards:
        """List the embeddings that prompts may name, those of all models."""
        cards: dict[bool, dict[str, EmbeddingCard]] = {True: {}, False: {}}
        for offer in offers:
            for one in await offer.service.embeddings():
                cards[one.unusable is None].setdefault(one.name, EmbeddingCard(vectors=one.tokens))
        return EmbeddingCards(loaded=cards[True], skipped=cards[False])

    _add_lists(routes)
    return routes


def _bodies(kind: type[Form], offers: Offers) -> Bodies[Form]:
    def name_in(body: Mapping[str, Any]) -> Any:
        overridden = body.get(_OVERRIDDEN)
        return overridden.get(settings.MODEL) if isinstance(overridden, Mapping) else None

    choose = partial(settings.chosen, offers, f"{_OVERRIDDEN}.{settings.MODEL}")
    return Bodies(offers, partial(body_class, kind), choose, name_in)


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
