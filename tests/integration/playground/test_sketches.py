"""Sketches on the playground: keep some, finish those, in a real browser, on a real service."""

import json
from urllib.parse import urlencode

from playwright.sync_api import Page, expect

from tests.integration.conftest import Running, eventually
from tests.integration.playground.conftest import Playground, in_flight
from tests.integration.playground.exchange import body_of, changed_events

STEPS = 9
STEP = 3


def sketch(playground: Playground, images: int) -> None:
    playground.page.get_by_label("Sketch first").check()
    playground.generate(images=images, steps=STEPS)
    playground.wait_for(images, "paused")


def states(page: Page) -> list[str]:
    return page.locator(".tile .state").all_text_contents()


def test_only_the_sketches_that_are_kept_are_finished(playground: Playground, service: Running) -> None:
    page, keyboard = playground.page, playground.page.keyboard
    with page.expect_request("**/stream") as request:
        sketch(playground, 4)
    assert body_of(request.value)["pause_after"] == STEP
    expect(page.get_by_role("status")).to_have_text("4 images sketched")
    eventually(lambda: in_flight(service) == 0)
    expect(page.get_by_role("button", name="Finish", exact=True)).to_be_disabled()

    page.get_by_role("button", name="Sketch of seed 7").click()
    for seed, key in ((8, "Enter"), (10, "Space")):
        page.get_by_role("button", name=f"Sketch of seed {seed}").focus()
        keyboard.press(key)
    expect(page.get_by_role("button", name="Finish 3")).to_be_enabled()
    page.get_by_role("button", name="Undo the last choice").click()
    expect(page.get_by_role("button", name="Sketch of seed 10")).to_have_attribute("aria-pressed", "false")
    page.get_by_role("button", name="Sketch of seed 8").click()
    page.get_by_role("button", name="Sketch of seed 9").click()
    with page.expect_request("**/resume") as resume:
        page.get_by_role("button", name="Finish 2").click()
    assert body_of(resume.value) == {"images": [0, 2]}
    playground.wait_for(2, "done")
    playground.wait_for(2, "cancelled")
    assert states(page) == ["Done", "Not kept", "Done", "Not kept"]
    expect(page.get_by_role("button", name="Try again")).to_be_hidden()
    expect(page.get_by_role("group", name="Sketches")).to_be_hidden()

    with page.expect_request("**/stream") as again:
        playground.tile(8).get_by_role("button", name="Generate this image again").click()
    assert "pause_after" not in body_of(again.value), "it has been sketched"
    playground.wait_for(3, "done")


def test_sketches_of_a_branchs_relatives_are_there_after_a_reload_and_end_one_by_one(playground: Playground) -> None:
    page = playground.page
    parts = {"variations": [{"seed": 3, "strength": 0.2}], "before": [{"until_step": 2, "prompt": "a pear"}]}
    link = {"prompt": "a plum", "seed": 7, "num_images": 3, "num_inference_steps": STEPS, "pause_after": 4}
    page.goto("about:blank")
    playground.open("#" + urlencode({**link, **{name: json.dumps(value) for name, value in parts.items()}}))
    expect(page.get_by_role("group", name="Goes back to")).to_contain_text("Up to step 2: a pear")
    with page.expect_request("**/stream") as request:
        page.get_by_role("button", name="Generate", exact=True).click()
    assert body_of(request.value).items() >= {**link, **parts}.items()
    playground.wait_for(3, "paused")
    page.get_by_role("button", name="Sketch of seed 7 + 4").click()
    page.reload()
    playground.wait_for(3, "paused")
    expect(page.locator(".tile .state")).to_have_text(["Sketch", "Sketch, kept", "Sketch"])
    page.get_by_role("button", name="Finish this image, seed 7 + 3").click()
    playground.wait_for(1, "done")
    page.get_by_role("button", name="Cancel this image, seed 7 + 4").click()
    playground.wait_for(1, "cancelled")
    page.get_by_role("button", name="Finish all").click()
    playground.wait_for(2, "done")


def test_it_says_what_came_too_late(playground: Playground) -> None:
    page = playground.page
    late = {"error": {"type": "not_paused", "message": "none of them is paused"}}
    page.route("**/resume", lambda route: route.fulfill(status=409, json=late), times=1)
    sketch(playground, 2)
    page.get_by_role("button", name="Finish all").click()
    expect(page.locator(".run .notice")).to_have_text("It is too late: these sketches do not wait any more.")
    playground.forgive("409")
    page.get_by_role("button", name="Cancel all").click()
    playground.wait_for(2, "cancelled")

    page.route("**/stream", lambda route: changed_events(route, lambda event: event | _EXPIRED.get(event["type"], {})))
    page.get_by_label("Sketch first").uncheck()
    playground.generate(images=1, steps=4)
    expect(playground.tile(7).locator(".state")).to_have_text("Expired")


_EXPIRED = {"image": {"type": "cancelled", "error": {"type": "expired", "message": "nobody resumed it"}}}
"""What becomes of an image that waits too long."""
