"""webuiapi, a Python client of A1111's API."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from PIL import Image
from webuiapi import WebUIApi

from tests.clients.report import MASK, PHOTO, expect, report

URL = urlsplit(sys.argv[1])
API = WebUIApi(host=URL.hostname, port=URL.port)
SIZE = {"width": 256, "height": 256}


def sizes(answer: Any) -> str:
    found = {"x".join(map(str, image.size)) for image in answer.images}
    return f"{len(answer.images)} of {' and '.join(sorted(found))}, seeds {answer.info['all_seeds']}"


def generated() -> str:
    return sizes(API.txt2img(prompt="a red apple", seed=7, steps=6, batch_size=2, **SIZE))


def varied() -> str:
    return sizes(API.img2img(images=[Image.open(PHOTO)], prompt="a green apple", seed=7, steps=8, **SIZE))


def painted_in() -> str:
    pictures = {"images": [Image.open(PHOTO)], "mask_image": Image.open(MASK)}
    return sizes(API.img2img(**pictures, prompt="a green apple", seed=7, steps=8, n_iter=2, **SIZE))


def told() -> str:
    """The client writes a picture anew before it asks, and so without its text."""
    answer = API.png_info(Image.open(PHOTO))
    expect(answer.info == "", answer.info)
    return "no text in it"


def watched_and_interrupted() -> str:
    """Watch a long request until there is a picture of it, then interrupt it."""
    with ThreadPoolExecutor() as threads:
        running = threads.submit(API.txt2img, prompt="a red apple", seed=7, steps=100, **SIZE)
        until = time.monotonic() + 120
        while not (now := API.get_progress())["current_image"] and time.monotonic() < until and not running.done():
            time.sleep(0.1)
        expect(now["current_image"], now)
        API.interrupt()
        answer = running.result()
    return f"picture at {now['progress']:.2f}; {answer.info['warnings'][-1]}"


def listed() -> str:
    expect(API.util_get_current_model() == API.util_get_model_names()[0], API.util_get_model_names())
    API.util_set_model(API.util_get_current_model())
    API.util_wait_for_ready(0.1)
    return f"{API.util_get_current_model()}; {', '.join(API.util_get_sampler_names())}"


if __name__ == "__main__":
    report(
        {
            "models, samplers, options": listed,
            "txt2img, batch_size 2": generated,
            "img2img": varied,
            "img2img, mask, n_iter 2": painted_in,
            "png_info": told,
            "progress, interrupt": watched_and_interrupted,
        }
    )
