"""The playground's chooser of LoRAs."""

from playwright.sync_api import expect

from tests.integration.playground.conftest import OpenPlayground, Playground
from tests.integration.playground.exchange import body_of

LISTED = {"hash": None, "size": 1, "base_model": "SDXL", "rank": 4, "unusable": None}


def listed(*names: str) -> list[dict[str, object]]:
    return [{**LISTED, "name": name, "trigger_words": [f"{name} style"]} for name in names]


def test_they_are_chosen_weighed_and_sent_and_links_keep_them(
    playground: Playground, open_playground: OpenPlayground
) -> None:
    page = playground.page
    page.route("**/loras", lambda route: route.fulfill(json=listed("a", "b")))
    page.reload()
    chooser = page.get_by_label("Add a LoRA")
    chooser.select_option("b")
    expect(page.get_by_label("Scale of b")).to_be_focused()
    chooser.select_option("a")
    page.get_by_label("Scale of a").fill("0.25")
    page.get_by_role("button", name="Remove b").click()
    expect(chooser).to_be_focused()
    playground.fill(prompt="a cat", steps=4)
    for _ in range(2):
        page.get_by_role("button", name="Put “a style” into the prompt").click()
    with page.expect_request("**/stream") as request:
        page.get_by_role("button", name="Generate", exact=True).click()
    body = body_of(request.value)
    assert (body["prompt"], body["loras"]) == ("a cat, a style", [{"name": "a", "scale": 0.25}])
    playground.wait_for(4, "done")
    expect(page.locator(".meta").first).to_contain_text("a 0.25")

    page.get_by_role("button", name="Back to the defaults").click()
    expect(page.get_by_label("Scale of a")).to_have_count(0)
    page.get_by_role("button", name="Use settings").first.click()
    expect(page.get_by_label("Scale of a")).to_have_value("0.25")
    there = open_playground("#" + page.url.partition("#")[2])
    expect(there.page.get_by_label("Scale of a")).to_have_value("0.25")


def test_files_that_come_later_are_found_and_a_bad_one_is_told_beside_it(playground: Playground) -> None:
    page = playground.page
    files = listed("a")
    page.route("**/loras", lambda route: route.fulfill(json=files))
    page.reload()
    chooser = page.get_by_label("Add a LoRA")
    chooser.select_option("a")
    files.extend(listed("gone"))
    chooser.blur()
    chooser.focus()
    chooser.select_option("gone")
    playground.generate()
    scale = page.get_by_label("Scale of gone")
    expect(scale).to_have_accessible_description('The LoRA "gone" is not in adapters.path; see GET /loras.')
    expect(scale).to_be_focused()
    assert page.locator(".run").count() == 0
    playground.forgive("422")


def test_without_any_there_is_no_chooser(playground: Playground) -> None:
    page = playground.page
    page.route("**/loras", lambda route: route.fulfill(json=[]))
    with page.expect_response("**/loras"):
        page.reload()
    page.locator("#generate:enabled").wait_for()
    expect(page.get_by_label("Add a LoRA")).to_be_hidden()
