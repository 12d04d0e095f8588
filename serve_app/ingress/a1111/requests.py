"""Translates requests of A1111's API to the service's own."""

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from pydantic import create_model

from serve_app.errors import InvalidRequest
from serve_app.ingress.a1111.prompts import edited, without_loras
from serve_app.ingress.a1111.samplers import sampling_of
from serve_app.ingress.a1111.schemas import UNSUPPORTED, WITHOUT_EFFECT, Img2Img, Txt2Img
from serve_app.ingress.offers import Offer
from serve_app.ingress.requests import borrowed, own_or_invalid, renamed
from serve_app.prompt_embeddings import spelled_out
from serve_app.recipe import OF_CONDITIONING
from serve_app.schemas import GenerateRequest

_CALLED = {
    "num_inference_steps": "steps",
    "guidance_scale": "cfg_scale",
    "strength": "denoising_strength",
    "init_image": "init_images",
    "mask_image": "mask",
    "scheduler": "sampler_name",
    "sigma_schedule": "scheduler",
    "padding_mask_crop": "inpaint_full_res_padding",
}
_OWN = {theirs: own for own, theirs in _CALLED.items()}
NAMES = {**_CALLED, "loras": "prompt", "before": "prompt"}
"""What A1111 calls our fields; its prompts name LoRAs, and are edited on the way."""
_SAME = ("prompt", "negative_prompt", "width", "height", "seed", "timeout_s", "mask_blur")
_BORROWED = (*_SAME, "steps", "cfg_scale", "denoising_strength")
_OURS = OF_CONDITIONING
"""Fields that A1111 does not have."""
_COUNTED_OTHERWISE = ("heun", "dpm2", "dpm2_a", "dpmpp_sde", "dpmpp_2s")
"""Samplers of which A1111 counts UNet calls, so that a prompt may change in the middle of a step."""
_NOTHING_SAID = " "
"""A prompt has at least one character; the model reads this one as none."""
_MASK_BLUR = 4
"""A1111's default."""

Form = TypeVar("Form", bound=Txt2Img)


def body_class(kind: type[Form], offer: Offer) -> type[Form]:
    """Return the class that validates bodies for a model, with its bounds and defaults."""
    request = offer.request
    names = [name for name in _BORROWED if name in kind.model_fields]
    fields: dict[str, Any] = {name: borrowed(request, _OWN.get(name, name)) for name in (*names, *_OURS)}
    if "mask_blur" in fields:
        fields["mask_blur"] = borrowed(request, "mask_blur", default=_MASK_BLUR)
    return create_model(kind.__name__, __base__=kind, __doc__=kind.__doc__, **fields)


def own_request(
    body: Txt2Img, offer: Offer, embeddings: Collection[str] = (), loras: Collection[str] = ()
) -> GenerateRequest:
    """Translate a body to a request of this service. `embeddings` are the names that stand for themselves in prompts,
    `loras` those of files that it may name without their folders.

    Raises InvalidRequest or RequestValidationError.
    """
    scheduler, schedule = sampling_of(body.sampler_name or body.sampler_index, body.scheduler)
    if scheduler == "ddim" and (body.model_extra or {}).get("eta"):  # its usual value is 0, that of others 1
        raise InvalidRequest(f"eta: {UNSUPPORTED}", "eta")
    said = body.model_dump(include={*_SAME, *_OURS, "steps", "cfg_scale"}, exclude_unset=True, exclude={"mask_blur"})
    fields = {_OWN.get(name, name): value for name, value in said.items()} | _pictures(body)
    prompt, named = without_loras(body.prompt, loras)
    if (body.model_extra or {}).get("disable_extra_networks"):
        named = []  # taken out of the prompt all the same
    texts: dict[str, str] = {"prompt": prompt}
    if "negative_prompt" in fields:
        texts["negative_prompt"] = body.negative_prompt
    whole = isinstance(body, Img2Img) or scheduler in _COUNTED_OTHERWISE
    *before, (_, own) = [(body.steps, texts)] if whole else edited(texts, body.steps)
    fields |= _spelled_out(own, embeddings)
    fields["before"] = [{"until_step": end, **_spelled_out(phase, embeddings)} for end, phase in before]
    fields |= {"loras": named, "scheduler": scheduler, "sigma_schedule": schedule}
    if body.subseed_strength:
        fields["variations"] = [{"seed": body.subseed, "strength": body.subseed_strength}]
    fields |= {"prompt_syntax": "weighted", "num_images": _number(body, offer.args.limits.max_images)}
    with renamed(NAMES):
        return own_or_invalid(offer.request, **fields)


def _spelled_out(texts: Mapping[str, str], embeddings: Collection[str]) -> dict[str, str]:
    spelled = {name: spelled_out(text, embeddings) for name, text in texts.items()}
    return {**spelled, "prompt": spelled["prompt"] or _NOTHING_SAID}


def _pictures(body: Txt2Img) -> dict[str, Any]:
    if not isinstance(body, Img2Img):
        return {}
    fields: dict[str, Any] = {"init_image": body.init_images[0], "strength": body.denoising_strength}
    if not body.mask:
        return fields
    crop = body.inpaint_full_res_padding if body.inpaint_full_res else None
    return {**fields, "mask_image": body.mask, "mask_blur": body.mask_blur, "padding_mask_crop": crop}


def _number(body: Txt2Img, most: int) -> int:
    number = body.n_iter * body.batch_size
    if number > most:
        param = "n_iter" if body.n_iter > 1 else "batch_size"
        raise InvalidRequest(f"{param}: n_iter x batch_size is {number}, and must be at most {most}", param)
    return number


def warnings_of(body: Txt2Img) -> list[str]:
    """Return a sentence for each field that is not known."""
    unknown = (body.model_extra or {}).keys() - WITHOUT_EFFECT
    return [f"{name} has no effect: no such field" for name in sorted(unknown)]
