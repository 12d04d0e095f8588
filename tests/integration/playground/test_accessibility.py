"""axe finds nothing wrong with the page, in any state, in any colours, at any width."""

from base64 import b64decode
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import FilePayload, Page

from tests.integration.playground.conftest import ENDLESS, OpenPlayground
from tests.integration.playground.exchange import changed_events, fail_seed

DESKTOP = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True}


PIXEL = b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg==")


def check(page: Page, state: str) -> None:
    results = Axe().run(page)
    assert results.violations_count == 0, f"{state}:\n{results.generate_report()}"


@pytest.mark.parametrize("profile", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(open_playground: OpenPlayground, scheme: str, profile: dict[str, Any]) -> None:
    playground = open_playground(color_scheme=scheme, **profile)
    page = playground.page
    page.locator("#more").evaluate("details => details.open = true")
    page.get_by_label("Add a LoRA").select_option("a")
    check(page, "empty, with a LoRA")
    page.get_by_role("button", name="Remove a", exact=True).click()

    page.locator("#init_image").set_input_files(FilePayload(name="photo.png", mimeType="image/png", buffer=PIXEL))
    page.get_by_role("button", name="Paint a mask").click()
    page.keyboard.press("Space")
    check(page, "painting")
    page.keyboard.press("Escape")
    page.get_by_text("Around the mask", exact=True).click()
    check(page, "masked")
    page.get_by_role("button", name="Remove the picture").click()

    playground.generate(**ENDLESS)
    playground.wait_for(4, "running")
    check(page, "running")
    page.get_by_role("button", name="Cancel all").click()
    playground.wait_for(4, "cancelled")
    check(page, "cancelled")

    playground.generate(steps=4, width_in_pixels=64, height_in_pixels=64)
    playground.wait_for(4, "done")
    check(page, "done")
    playground.tiles("done").first.locator(".open").click()
    check(page, "full size")
    page.keyboard.press("Escape")

    page.route("**/stream", lambda route: changed_events(route, fail_seed(8)), times=1)
    playground.generate(steps=4)
    playground.wait_for(1, "failed")
    check(page, "failed")

    playground.generate(prompt=" ", steps=0)
    page.locator("#prompt-error").wait_for()
    check(page, "invalid")
