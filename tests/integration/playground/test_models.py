"""The playground's chooser of models."""

from copy import deepcopy
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from tests.integration.playground.conftest import OpenPlayground, Playground
from tests.integration.playground.exchange import body_of
from tests.integration.playground.test_loras import listed


@pytest.fixture
def two_models(playground: Playground) -> Playground:
    """The page of a service with the models `large`, which is the default, and `small`."""
    serve_two(playground.page)
    playground.page.reload()
    playground.page.locator("#generate:enabled").wait_for()
    return playground


def serve_two(page: Page) -> None:
    def models(route: Route) -> None:
        (only,) = route.fetch().json()
        large, small = {**deepcopy(only), "name": "large"}, {**deepcopy(only), "name": "small"}
        fields: dict[str, Any] = small["request"]["properties"]
        fields["width"] |= {"default": 128, "maximum": 136}
        fields["num_inference_steps"] |= {"default": 3, "maximum": 9}
        fields["loras"]["maxItems"] = 1
        route.fulfill(json=[large, small])

    page.route("**/models", models)
    page.route("**/loras?model=large", lambda route: route.fulfill(json=listed("a", "b")))
    page.route("**/loras?model=small", lambda route: route.fulfill(json=listed("c", "d")))
    page.route("**/schedulers?model=large", lambda route: route.fulfill(json=taken("euler", "heun")))
    page.route("**/schedulers?model=small", lambda route: route.fulfill(json=taken("euler", "lcm")))


def taken(*names: str) -> list[dict[str, Any]]:
    """Return what `GET /schedulers` answers."""
    return [{"name": name, "said": name, "default": name == "euler", "sigma_schedules": []} for name in names]


def test_bounds_defaults_and_loras_follow_the_model(two_models: Playground) -> None:
    page = two_models.page
    model, steps, width = page.get_by_label("Model"), page.get_by_label("Steps"), page.get_by_label("Width in pixels")
    expect(model).to_have_value("large")
    expect(page.get_by_label("Add a LoRA")).to_contain_text("b")
    two_models.fill(prompt="a cat", guidance=2.5)
    model.select_option("small")
    expect(steps).to_have_value("3")
    expect(steps).to_have_attribute("max", "9")
    expect(width).to_have_value("128")
    expect(width).to_have_attribute("max", "136")
    expect(page.get_by_label("Size", exact=True)).to_contain_text("Square, 88 × 88")
    expect(page.get_by_label("Guidance")).to_have_value("2.5")
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a cat")
    expect(page.get_by_label("Scheduler").locator("option")).to_have_text(["default", "euler", "lcm"])
    page.get_by_label("Add a LoRA").select_option("d")
    expect(page.get_by_label("Add a LoRA")).to_contain_text("At most 1")
    page.get_by_role("button", name="Back to the defaults").click()
    expect(model).to_have_value("small")
    expect(steps).to_have_value("3")


def test_the_model_is_sent_and_links_and_runs_keep_it(two_models: Playground, open_playground: OpenPlayground) -> None:
    page = two_models.page
    page.get_by_label("Model").select_option("small")
    page.route(
        "**/stream", lambda route: route.fulfill(status=503, json={"error": {"type": "not_ready", "message": "no"}})
    )
    with page.expect_request("**/stream") as request:
        two_models.generate(images=1)
    assert (body_of(request.value)["model"], body_of(request.value)["num_inference_steps"]) == ("small", 3)
    expect(page.locator(".run .notice p").first).to_have_text("No.")
    two_models.forgive("503")
    link = "#" + page.url.partition("#")[2]
    page.get_by_label("Model").select_option("large")
    expect(page.get_by_label("Steps")).to_have_value("20")
    page.get_by_role("button", name="Use settings").first.click()
    expect(page.get_by_label("Model")).to_have_value("small")
    expect(page.get_by_label("Steps")).to_have_value("3")

    there = open_playground().page
    serve_two(there)
    there.goto(two_models.url + "/" + link)
    there.reload()
    expect(there.get_by_label("Model")).to_have_value("small")
    expect(there.get_by_label("Steps")).to_have_attribute("max", "9")
    there.goto(two_models.url + "/#prompt=a")
    expect(there.get_by_label("Model")).to_have_value("large")


def test_with_one_there_is_no_chooser(playground: Playground) -> None:
    expect(playground.page.get_by_label("Model")).to_be_hidden()
    with playground.page.expect_request("**/stream") as request:
        playground.generate(images=1, steps=4)
    assert "model" not in body_of(request.value)
    playground.wait_for(1, "done")
