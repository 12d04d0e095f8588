"""What the playground says where images or requests come to nothing, and how one goes on."""

from typing import Any

from playwright.sync_api import expect

from tests.integration.conftest import SMALL, Running, eventually
from tests.integration.playground.conftest import Playground, in_flight
from tests.integration.playground.exchange import body_of, changed_events, fail_seed


def test_all_that_failed_or_was_cancelled_is_tried_again_at_once(playground: Playground) -> None:
    def one_of_each(event: dict[str, Any]) -> Any:
        if event["type"] == "image" and event["seed"] == 9:
            return {"type": "cancelled", "index": event["index"], "seed": 9}
        return fail_seed(8)(event)

    playground.page.route("**/stream", lambda route: changed_events(route, one_of_each), times=1)
    playground.generate()
    playground.wait_for(2, "done")
    with playground.page.expect_request("**/stream") as request:
        playground.page.get_by_role("button", name="Try again").click()
    assert body_of(request.value)["seeds"] == [8, 9]
    playground.wait_for(4, "done")


def test_a_failed_image_says_why_and_can_be_retried(playground: Playground) -> None:
    playground.page.route("**/stream", lambda route: changed_events(route, fail_seed(8)), times=1)
    playground.generate()
    expect(playground.tile(8)).to_contain_text("No room for it.")
    expect(playground.tile(8)).to_contain_text("Failed")
    assert playground.tiles("done").count() == 3
    playground.page.get_by_role("button", name="Try again").click()
    playground.wait_for(4, "done")
    expect(playground.tile(8)).not_to_contain_text("No room for it.")
    expect(playground.page.get_by_role("button", name="Try again")).to_be_hidden()


def test_a_connection_that_breaks_is_gone_on_with(playground: Playground) -> None:
    """The service is asked for what comes after the last event that the page has."""

    def cut_off(event: dict[str, Any]) -> dict[str, Any] | None:
        return None if event["type"] == "image" else event

    playground.page.route("**/stream", lambda route: changed_events(route, cut_off, with_ids=True), times=1)
    with playground.page.expect_request("**/generations/*/events") as request:
        playground.generate(images=2, steps=4)
    expect(playground.tiles("done")).to_have_count(2)
    assert int(request.value.headers["last-event-id"]) > 1
    assert playground.tiles("failed").count() == 0


def test_a_connection_that_is_lost_leaves_what_is_finished_and_the_rest_can_be_retried(playground: Playground) -> None:
    ended = []

    def cut_off(event: dict[str, Any]) -> dict[str, Any] | None:
        ended.append(event["type"])
        return None if ended.count("image") > 2 else event

    playground.page.route("**/stream", lambda route: changed_events(route, cut_off), times=1)
    playground.generate()
    playground.wait_for(2, "failed")
    expect(playground.tiles("failed").first).to_contain_text("The connection was lost")
    assert playground.tiles("done").count() == 2
    playground.page.get_by_role("button", name="Try again").click()
    playground.wait_for(4, "done")


def test_a_service_that_cannot_be_reached_is_said_and_tried_again(playground: Playground) -> None:
    playground.page.route("**/stream", lambda route: route.abort(), times=1)
    playground.generate()
    expect(playground.page.locator(".run .notice p")).to_have_text("The service cannot be reached.")
    expect(playground.page.locator(".tiles")).to_be_hidden()
    playground.forgive("ERR_FAILED")
    playground.page.get_by_role("button", name="Try again").click()
    playground.wait_for(4, "done")
    expect(playground.page.locator(".run .notice")).to_be_hidden()


def test_refused_runs_do_not_push_out_finished_ones(playground: Playground) -> None:
    page = playground.page
    playground.generate(images=1, steps=9)  # fewer would bring a notice of their own
    playground.wait_for(1, "done")
    page.route("**/stream", lambda route: route.abort())
    notices = page.locator(".run .notice p:visible")
    for refused in range(1, 14):
        playground.generate(images=1, steps=4)
        expect(notices).to_have_count(min(refused, 12))
        expect(page.get_by_role("button", name="Cancel all")).to_have_count(0)
    expect(page.locator(".tile:visible")).to_have_count(1)
    page.get_by_role("button", name="Remove").first.click()
    expect(notices).to_have_count(11)
    playground.forgive("ERR_FAILED")


def test_a_picture_stays_when_generating_it_again_is_refused(playground: Playground) -> None:
    playground.generate(images=1, steps=4)
    playground.wait_for(1, "done")
    playground.page.route("**/stream", lambda route: route.abort(), times=1)
    playground.tile(7).get_by_role("button", name="Generate this image again").click()
    expect(playground.page.locator(".run .notice p")).to_have_text("The service cannot be reached.")
    expect(playground.tile(7)).to_have_attribute("data-state", "done")
    playground.forgive("ERR_FAILED")
    with playground.page.expect_request("**/stream") as request:
        playground.page.get_by_role("button", name="Try again").click()
    assert body_of(request.value)["seeds"] == [7]
    playground.wait_for(1, "done")


def test_what_the_service_refuses_is_said_beside_the_field(playground: Playground) -> None:
    steps = playground.page.get_by_label("Steps")
    steps.evaluate("input => input.removeAttribute('max')")
    playground.generate(steps=5000)
    expect(steps).to_be_focused()
    expect(playground.page.locator("#num_inference_steps-error")).to_contain_text("less than or equal to 998")
    expect(playground.page.locator(".run")).to_have_count(0)
    playground.forgive("status of 422")
    playground.fill(steps=4)
    expect(playground.page.locator("#num_inference_steps-error")).to_have_count(0)
    playground.generate(steps=4)
    playground.wait_for(4, "done")


def test_a_busy_service_tells_the_position_in_the_queue(playground: Playground, service: Running) -> None:
    with service.http.stream(
        "POST", "/stream", json={"prompt": "a", **SMALL, "num_images": 8, "num_inference_steps": 998}
    ) as others:
        eventually(lambda: in_flight(service) == 8)
        playground.generate(images=2)
        playground.wait_for(2, "queued")
        expect(playground.tile(7)).to_contain_text("Queued, position 1")
        expect(playground.tile(8)).to_contain_text("Queued, position 2")
        strip = playground.page.locator("#service")
        expect(strip).to_contain_text("Generating")
        expect(strip.locator("[data-value=waiting]")).to_have_text("2")
        expect(strip.locator("[data-value=replicas]")).to_have_text("2/2")
        others.close()
    playground.wait_for(2, "done")


def test_a_full_line_says_when_to_come_back(playground: Playground, service: Running) -> None:
    body = {"prompt": "a", **SMALL, "num_images": 12, "num_inference_steps": 998}
    with service.http.stream("POST", "/stream", json=body), service.http.stream("POST", "/stream", json=body):
        playground.generate(images=2)
        expect(playground.page.locator(".run .notice")).to_contain_text("images are waiting")
        expect(playground.page.locator(".run .notice")).to_contain_text("There should be room again")
        expect(playground.page.locator(".tiles")).to_be_hidden()
        playground.forgive("status of 429")
    eventually(lambda: in_flight(service) == 0)
    playground.page.get_by_role("button", name="Try again").click()
    playground.wait_for(2, "done")
