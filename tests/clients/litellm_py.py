"""LiteLLM, as a program that has it call an OpenAI-compatible server."""

import sys
from typing import Any

import litellm

from tests.clients.report import CUT, PHOTO, expect, report, seen

SERVER = {"model": "openai/gpt-image-1", "api_base": f"{sys.argv[1]}/v1", "api_key": "none"}
FEW = {"extra_body": {"num_inference_steps": 6, "seed": 7}}


def pictures(answer: Any) -> str:
    return seen(*[item.b64_json for item in answer.data])


def generated() -> str:
    return pictures(litellm.image_generation(prompt="a red apple", n=2, size="256x256", **SERVER, **FEW))


def edited() -> str:
    with PHOTO.open("rb") as image:
        return pictures(litellm.image_edit(image=image, prompt="a green apple", **SERVER, **FEW))


def edited_in_part() -> str:
    with PHOTO.open("rb") as image, CUT.open("rb") as mask:
        return pictures(
            litellm.image_edit(image=image, mask=mask, prompt="a green apple", n=2, size="256x256", **SERVER)
        )


def refused() -> str:
    with PHOTO.open("rb") as image, PHOTO.open("rb") as other:
        try:
            litellm.image_edit(image=[image, other], prompt="a", **SERVER)
        except litellm.BadRequestError as error:
            expect("more than one picture" in str(error), error)
            return "BadRequestError: more than one picture is not supported"
    raise AssertionError("two pictures were taken")


if __name__ == "__main__":
    report(
        {
            "image_generation, n 2": generated,
            "image_edit": edited,
            "image_edit, mask, n 2": edited_in_part,
            "image_edit, two pictures": refused,
        }
    )
