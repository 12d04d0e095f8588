"""Pictures to go on from: given in each way, masked in each way, on a real service."""

import json
import re
from base64 import b64decode, b64encode
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import FilePayload, Page, Route, expect

from tests.integration.playground.conftest import OpenPlayground, Playground
from tests.integration.playground.exchange import body_of

QUICK = {"images": 1, "steps": 4}


def photo(width: int = 64, height: int = 64, file_format: str = "PNG") -> bytes:
    noise = np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(noise).save(file, file_format)
    return file.getvalue()


def hand_over(page: Page, event: str, name: str, content: bytes, kind: str = "image/png") -> None:
    """Drop or paste a file, as the browser tells the page of it."""
    page.evaluate(
        """([event, name, text, type]) => {
            const given = new DataTransfer();
            given.items.add(new File([Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))], name, { type }));
            const settings = { dataTransfer: given, clipboardData: given, bubbles: true, cancelable: true };
            document.body.dispatchEvent(new (event === "drop" ? DragEvent : ClipboardEvent)(event, settings));
        }""",
        [event, name, b64encode(content).decode(), kind],
    )


def choose(playground: Playground, content: bytes | None = None) -> None:
    file = FilePayload(name="photo.png", mimeType="image/png", buffer=content or photo())
    playground.page.locator("#init_image").set_input_files(file)
    expect(playground.page.locator("#start .name")).to_have_text("photo.png")


def request_of(playground: Playground, act: Callable[[], Any]) -> dict[str, Any]:
    with playground.page.expect_request("**/stream") as request:
        act()
    playground.wait_for(1, "done")
    return body_of(request.value)


def pixels(text: str) -> "np.ndarray[Any, np.dtype[np.int16]]":
    with Image.open(BytesIO(b64decode(text.partition(",")[2]))) as picture:
        return np.asarray(picture.convert("RGB")).astype(np.int16)


def result(playground: Playground) -> "np.ndarray[Any, np.dtype[np.int16]]":
    """Return the pixels of the newest picture."""
    picture = playground.tiles("done").first.locator("img")
    text = picture.evaluate("""(img) => {
        const size = { width: img.naturalWidth, height: img.naturalHeight };
        const canvas = Object.assign(document.createElement("canvas"), size);
        canvas.getContext("2d").drawImage(img, 0, 0);
        return canvas.toDataURL();
    }""")
    return pixels(text)


def drag(page: Page, *points: tuple[float, float]) -> None:
    """Draw over the picture; points are shares of its sides."""
    box = page.get_by_role("application", name="Mask").bounding_box()
    assert box
    at = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*at[0])
    page.mouse.down()
    for point in at[1:]:
        page.mouse.move(*point, steps=4)
    page.mouse.up()


def test_a_dropped_picture_is_sent_as_it_is_and_comes_back_from_the_history_but_not_from_a_link(
    playground: Playground,
) -> None:
    page, content = playground.page, photo(72, 96)
    hand_over(page, "drop", "photo.png", content)
    expect(page.locator("#start .facts")).to_have_text("72 × 96")
    expect(page.get_by_label("Height in pixels")).to_have_value("96")
    expect(page.get_by_label("Size", exact=True)).to_have_value("72x96")
    body = request_of(playground, lambda: playground.generate(**QUICK))
    assert b64decode(body["init_image"].removeprefix("data:image/png;base64,")) == content
    assert (body["strength"], body["width"], body["height"]) == (0.6, 72, 96)
    assert "mask_image" not in body
    expect(page.locator(".run .meta")).to_contain_text("from photo.png, strength 0.6")

    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy a link to these settings").click()
    expect(page.locator("#announcer")).to_have_text("Link without the picture copied")

    kept = page.get_by_role("button", name="a red apple, 1 image, seed 7")
    kept.wait_for()
    page.reload()
    expect(page.get_by_text("which links leave out")).to_be_visible()
    kept.click()
    expect(page.locator("#start .name")).to_have_text("photo.png")
    expect(page.get_by_text("which links leave out")).to_be_hidden()
    page.get_by_role("button", name="Remove the picture").click()
    expect(page.locator("#init_image")).to_be_focused()
    with page.expect_request("**/stream") as request:
        page.get_by_role("button", name="Generate", exact=True).click()
    assert not {"init_image", "strength", "keep_outside"} & set(body_of(request.value))
    assert "strength" not in page.url
    playground.wait_for(2, "done")
    page.get_by_role("button", name="Use settings").nth(1).click()
    expect(page.locator("#start .name")).to_have_text("photo.png")


def test_a_file_is_refused_with_the_reason_or_brought_into_a_format_that_the_service_reads(
    playground: Playground,
) -> None:
    page = playground.page
    field = page.locator("#init_image")
    hand_over(page, "paste", "notes.txt", b"no picture", "text/plain")
    expect(field).to_have_accessible_description("notes.txt is no picture that this browser can read.")
    hand_over(page, "drop", "nothing.png", b"")
    expect(field).to_have_accessible_description("nothing.png is empty.")
    expect(page.locator("#paint")).to_be_hidden()
    hand_over(page, "paste", "photo.avif", photo(80, 64, "AVIF"), "image/avif")
    expect(page.locator("#start .facts")).to_have_text("80 × 64")
    expect(field).not_to_have_attribute("aria-invalid", "true")
    assert pixels(request_of(playground, lambda: playground.generate(**QUICK))["init_image"]).shape == (64, 80, 3)

    def spoil(route: Route) -> None:
        route.continue_(post_data=json.dumps({**body_of(route.request), "mask_image": "data:image/png;base64,AAAA"}))

    page.route("**/stream", spoil, times=1)
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(field).to_be_focused()
    expect(field).to_have_accessible_description(re.compile("^Mask_image: "))
    playground.forgive("status of 422")


def test_what_is_painted_over_changes_and_nothing_else_does(playground: Playground) -> None:
    page = playground.page
    content = photo()
    choose(playground, content)
    page.get_by_role("button", name="Paint a mask").click()
    status = page.get_by_role("dialog", name="Paint a mask").get_by_role("status")
    expect(status).to_have_text("Nothing is marked yet.")
    drag(page, (0.2, 0.3), (0.9, 0.3))
    page.get_by_role("button", name="Erase").click()
    drag(page, (0.9, 0.3), (0.7, 0.3))
    page.get_by_role("button", name="Erase").click()
    drag(page, (0.1, 0.9))
    page.get_by_role("button", name="Undo").click()
    page.get_by_role("button", name="Done").click()
    expect(page.get_by_label("Strength")).to_have_attribute("placeholder", "1")
    body = request_of(playground, lambda: playground.generate(**QUICK))
    assert (body["strength"], body["keep_outside"], body["padding_mask_crop"]) == (1, True, None)
    mask = pixels(body["mask_image"])[..., 0]
    assert (mask[19, 13], mask[19, 30], mask[19, 50], mask[57, 6]) == (255, 255, 0, 0)
    changed = np.abs(result(playground) - pixels("," + b64encode(content).decode())).max(axis=2)
    assert changed[mask == 0].max() == 0
    assert (changed[mask == 255] > 0).mean() > 0.9

    page.get_by_role("button", name="Change the mask").click()
    page.get_by_role("button", name="Clear", exact=True).click()
    page.keyboard.press("Escape")
    expect(page.get_by_label("Strength")).to_have_attribute("placeholder", "0.6")
    with page.expect_request("**/stream") as request:
        page.get_by_role("button", name="Generate", exact=True).click()
    assert not {"mask_image", "mask_blur", "keep_outside"} & set(body_of(request.value))
    playground.wait_for(2, "done")


def test_a_mask_is_painted_by_keyboard_alone(playground: Playground) -> None:
    page, keyboard = playground.page, playground.page.keyboard
    choose(playground)
    page.locator("#init_image").focus()
    keyboard.press("Tab")
    keyboard.press("Tab")
    expect(page.get_by_role("button", name="Paint a mask")).to_be_focused()
    keyboard.press("Enter")
    canvas = page.get_by_role("application", name="Mask")
    status = page.get_by_role("dialog", name="Paint a mask").get_by_role("status")
    expect(canvas).to_be_focused()
    keyboard.press("ArrowUp")
    keyboard.press("Space")
    expect(status).to_contain_text("% is marked")
    dab = status.text_content()
    keyboard.down("Space")
    for _ in range(4):
        keyboard.press("ArrowLeft")
    keyboard.up("Space")
    expect(status).not_to_have_text(dab or "")
    keyboard.press("Control+Z")
    expect(status).to_have_text(dab or "")
    for _ in range(4):
        keyboard.press("ArrowRight")
    keyboard.press("e")
    keyboard.press("]")
    keyboard.press("Space")
    expect(status).to_have_text("Nothing is marked yet.")
    keyboard.press("Control+Z")
    keyboard.press("Escape")
    expect(page.locator("#paint")).to_be_focused()
    expect(page.locator("#paint")).to_have_text("Change the mask")


def test_a_finger_paints_at_phone_width(open_playground: OpenPlayground) -> None:
    playground = open_playground(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page = playground.page
    choose(playground)
    page.get_by_role("button", name="Paint a mask").tap()
    box = page.get_by_role("application", name="Mask").bounding_box()
    assert box
    page.touchscreen.tap(box["x"] + box["width"] / 4, box["y"] + box["height"] / 4)
    expect(page.get_by_role("dialog").get_by_role("status")).to_contain_text("% is marked")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.get_by_role("button", name="Done").tap()
    page.get_by_text("More settings").tap()
    mask = pixels(request_of(playground, lambda: playground.generate(**QUICK))["mask_image"])
    assert (mask[16, 16, 0], mask[48, 48, 0]) == (255, 0)


@pytest.mark.parametrize("where", ["tile", "viewer"])
def test_edit_this_goes_on_from_a_picture_with_its_settings(playground: Playground, tmp_path: Path, where: str) -> None:
    page = playground.page
    playground.generate(prompt="a pear", **QUICK)
    playground.wait_for(1, "done")
    with page.expect_download() as waiting:
        playground.tile(7).get_by_role("link", name="Download").click()
    waiting.value.save_as(tmp_path / "7.png")
    playground.fill(prompt="a plum", steps=9)
    scope: Any = playground.tile(7)
    if where == "viewer":
        playground.tile(7).locator(".open").click()
        scope = page.get_by_role("dialog")
    scope.get_by_role("button", name="Edit this").click()
    expect(page.locator("#paint")).to_be_focused()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a pear")
    expect(page.get_by_label("Seed", exact=True)).to_have_value("")
    with page.expect_request("**/stream") as request:
        page.get_by_role("button", name="Generate", exact=True).click()
    body = body_of(request.value)
    assert b64decode(body["init_image"].partition(",")[2]) == (tmp_path / "7.png").read_bytes()
    assert (body["num_inference_steps"], body["strength"]) == (4, 0.6)
    playground.wait_for(2, "done")
