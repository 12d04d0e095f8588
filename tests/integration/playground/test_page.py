"""What a person does on the playground, in a real browser, on a real service."""

from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from tests.integration.conftest import Running, eventually
from tests.integration.playground.conftest import ENDLESS, LONG, OpenPlayground, Playground, in_flight
from tests.integration.playground.exchange import body_of


def watch_sources(page: Page) -> None:
    """Note every address that a picture of the page is given."""
    page.evaluate("""() => {
        window.sources = {};
        new MutationObserver((records) => records.forEach(({ target }) => {
            const seed = target.closest(".tile")?.querySelector(".seed").textContent;
            if (seed && target.getAttribute("src")) (window.sources[seed] ??= []).push(target.getAttribute("src"));
        })).observe(document.body, { subtree: true, attributes: true, attributeFilter: ["src"] });
    }""")


def download(playground: Playground, tile: Locator, folder: Path) -> Path:
    with playground.page.expect_download() as waiting:
        tile.get_by_role("link", name="Download").click()
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def test_a_prompt_becomes_pictures_that_sharpen_before_they_are_done(playground: Playground) -> None:
    watch_sources(playground.page)
    playground.generate(steps=100)
    playground.wait_for(4, "done")
    sources = playground.page.evaluate("window.sources")
    assert set(sources) == {f"Seed {seed}" for seed in range(7, 11)}
    for addresses in sources.values():
        *previews, final = [
            address for address, before in zip(addresses, [None, *addresses], strict=False) if address != before
        ]
        assert len(set(previews)) >= 2
        assert all(preview.startswith("data:image/jpeg") for preview in previews)
        assert final.startswith("blob:")
    for picture in playground.page.locator(".tile img").all():
        assert picture.evaluate("image => image.naturalWidth") == 64
    expect(playground.page.get_by_role("status")).to_have_text("4 images done")


def test_one_image_is_cancelled_and_the_others_go_on(playground: Playground) -> None:
    playground.generate(**LONG)
    expect(playground.tile(8)).to_have_attribute("data-state", "running")
    playground.tile(8).get_by_role("button", name="Cancel this image").click()
    expect(playground.tile(8)).to_have_attribute("data-state", "cancelled")
    expect(playground.tile(8).get_by_role("button", name="Generate this image again")).to_be_focused()
    playground.wait_for(3, "done")
    expect(playground.page.get_by_role("status")).to_have_text("3 images done, 1 image cancelled")
    playground.tile(8).get_by_role("button", name="Generate this image again").click()
    playground.wait_for(4, "done")


def test_all_images_are_cancelled(playground: Playground, service: Running) -> None:
    playground.generate(**ENDLESS)
    playground.wait_for(4, "running")
    eventually(lambda: in_flight(service) == 4)
    playground.page.get_by_role("button", name="Cancel all").click()
    playground.wait_for(4, "cancelled")
    eventually(lambda: in_flight(service) == 0, seconds=5)
    expect(playground.page.get_by_role("button", name="Cancel all")).to_be_hidden()


def test_closing_the_page_frees_the_replicas(playground: Playground, service: Running) -> None:
    playground.generate(**ENDLESS)
    playground.wait_for(4, "running")
    eventually(lambda: in_flight(service) == 4)
    playground.page.close()
    eventually(lambda: in_flight(service) == 0, seconds=5)


def test_only_one_tile_is_generated_again_and_its_seed_gives_the_same_picture(
    playground: Playground, tmp_path: Path
) -> None:
    playground.generate(images=2)
    playground.wait_for(2, "done")
    before = download(playground, playground.tile(8), tmp_path).read_bytes()
    other = playground.tile(7).locator("img").get_attribute("src")
    with playground.page.expect_request("**/stream") as request:
        playground.tile(8).get_by_role("button", name="Generate this image again").click()
    assert body_of(request.value)["seeds"] == [8]
    playground.wait_for(2, "done")
    assert download(playground, playground.tile(8), tmp_path).read_bytes() == before
    assert playground.tile(7).locator("img").get_attribute("src") == other


def test_a_picture_is_downloaded_under_the_name_of_its_seed(playground: Playground, tmp_path: Path) -> None:
    playground.page.get_by_label("Format").select_option("webp")
    playground.generate(images=1, width_in_pixels=72)
    playground.wait_for(1, "done")
    path = download(playground, playground.tile(7), tmp_path)
    assert path.name == "seed-7.webp"
    with Image.open(path) as picture:
        assert picture.size == (72, 64)


def test_more_seeds_are_the_next_ones_with_the_runs_settings(playground: Playground) -> None:
    playground.generate(prompt="a pear", images=3)
    playground.wait_for(3, "done")
    playground.fill(prompt="a plum", images=1)
    with playground.page.expect_request("**/stream") as request:
        playground.tile(8).get_by_role("button", name="More seeds").click()
    assert body_of(request.value)["prompt"] == "a pear"
    assert body_of(request.value)["seeds"] == [10, 11, 12]
    playground.wait_for(6, "done")


def test_more_like_this_generates_relatives_and_theirs_nearer_or_farther(playground: Playground) -> None:
    page = playground.page
    playground.generate(prompt="a pear", images=1)
    playground.wait_for(1, "done")
    with page.expect_request("**/stream") as request:
        playground.tile(7).get_by_role("button", name="More like this").click()
    body = body_of(request.value)
    (variation,) = body["variations"]
    assert (body["prompt"], body["seed"], body["num_images"], variation["strength"]) == ("a pear", 7, 4, 0.2)
    assert "seeds" not in body
    playground.wait_for(5, "done")
    relative = page.get_by_text(f"Seed 7 + {variation['seed'] + 1}", exact=True)
    with page.expect_request("**/stream") as request:
        page.locator(".tile", has=relative).get_by_role("button", name="More like this").click()
    first, second = body_of(request.value)["variations"]
    assert (first, second["strength"]) == ({"seed": variation["seed"] + 1, "strength": 0.2}, 0.2)
    playground.wait_for(9, "done")
    line = page.locator(".run").first.locator(".family")
    expect(line).to_have_text(f"Relatives of Seed 7 › + {variation['seed'] + 1} at 0.2")
    line.get_by_role("button").last.click()
    expect(page.locator(".tile", has=relative).locator(".open")).to_be_focused()
    slider = page.get_by_label("How far from the picture").nth(1)
    with page.expect_request("**/stream") as request:
        slider.fill("0.58")
        slider.press("ArrowRight")
    assert body_of(request.value)["variations"] == [{"seed": variation["seed"], "strength": 0.6}], "once it rests"
    expect(slider).to_have_value("0.2")
    playground.wait_for(13, "done")
    with page.expect_request("**/stream") as request:
        relative.nth(1).locator("xpath=ancestor::li").get_by_role("button", name="Generate this image again").click()
    assert body_of(request.value)["variations"] == [{"seed": variation["seed"] + 1, "strength": 0.2}]
    playground.wait_for(13, "done")


def test_relatives_come_back_from_the_history(playground: Playground) -> None:
    page = playground.page
    playground.generate(prompt="a pear", images=1)
    playground.wait_for(1, "done")
    playground.tile(7).get_by_role("button", name="More like this").click()
    playground.wait_for(5, "done")
    names = page.locator(".run").first.locator(".seed").all_text_contents()
    kept = page.get_by_role("button", name="a pear, 4 images, seed 7")
    kept.wait_for()
    page.reload()
    kept.click()
    expect(page.locator(".run .seed")).to_have_text(names)


def test_reloading_after_a_run_keeps_its_settings_and_its_pictures(playground: Playground) -> None:
    playground.generate(prompt="a pear", images=2)
    playground.wait_for(2, "done")
    kept = playground.page.get_by_role("button", name="a pear, 2 images, seed 7")
    kept.wait_for()
    playground.page.reload()
    expect(playground.page.get_by_label("Prompt", exact=True)).to_have_value("a pear")
    playground.fill(prompt="a plum", images=1)
    kept.click()
    playground.wait_for(2, "done")
    assert playground.tile(8).locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 64
    expect(playground.page.get_by_label("Prompt", exact=True)).to_have_value("a pear")
    expect(playground.page.get_by_label("Images", exact=True)).to_have_value("2")
    clear = playground.page.get_by_role("button", name="Clear the history")
    clear.click()  # Playwright declines what a page asks
    expect(kept).to_be_visible()
    playground.page.once("dialog", lambda dialog: dialog.accept())
    clear.click()
    expect(playground.page.get_by_role("region", name="History")).to_be_hidden()
    playground.page.reload()
    expect(playground.page.get_by_role("heading", name="One prompt, many seeds")).to_be_visible()
    expect(kept).to_be_hidden()


def test_the_history_of_another_tab_is_seen_on_coming_back(playground: Playground) -> None:
    other = playground.page.context.new_page()
    other.goto(playground.url)
    playground.generate(images=1, steps=4)
    name = "a red apple, 1 image, seed 7"
    playground.page.get_by_role("button", name=name).wait_for()
    kept = other.get_by_role("button", name=name)
    expect(kept).to_be_hidden()
    other.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(kept).to_be_visible()


def test_the_history_is_bounded(playground: Playground) -> None:
    playground.page.evaluate("""async () => {
        const { keep } = await import("/playground/history.js");
        const canvas = new OffscreenCanvas(8, 8);
        canvas.getContext("2d");
        const blob = await canvas.convertToBlob();
        for (let i = 0; i < 30; i++) {
            await keep({
                id: `run ${i}`, settings: { prompt: `prompt ${i}` }, model: "tiny", images: [{ seed: i, blob }]
            });
        }
    }""")
    playground.page.reload()
    expect(playground.page.locator(".history li")).to_have_count(24)
    expect(playground.page.locator(".history button").first).to_have_accessible_name("prompt 29, 1 image, seed 29")


def test_everything_by_keyboard(playground: Playground) -> None:
    keyboard = playground.page.keyboard
    playground.page.get_by_label("Prompt", exact=True).focus()
    keyboard.type("a red apple")
    keyboard.press("Control+Enter")
    playground.wait_for(4, "done")
    pictures = playground.page.locator(".tile .open")
    pictures.first.focus()
    keyboard.press("Enter")
    dialog = playground.page.get_by_role("dialog", name="Picture at full size")
    expect(dialog).to_contain_text("1 of 4")
    keyboard.press("ArrowRight")
    expect(dialog).to_contain_text("2 of 4")
    keyboard.press("ArrowLeft")
    keyboard.press("ArrowLeft")
    expect(dialog).to_contain_text("1 of 4")
    keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(pictures.first).to_be_focused()


def test_the_status_is_not_asked_for_while_nobody_looks(open_playground: OpenPlayground) -> None:
    page = open_playground().page  # with a clock of its own
    page.evaluate("""() => {
        Object.defineProperty(document, "hidden", { value: true, configurable: true });
        document.dispatchEvent(new Event("visibilitychange"));
    }""")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if request.url.endswith("/status") else None)
    page.clock.install()
    page.clock.run_for(60_000)
    assert asked == []
    with page.expect_request("**/status"):
        page.evaluate("""() => {
            delete document.hidden;
            document.dispatchEvent(new Event("visibilitychange"));
        }""")


@pytest.mark.parametrize("clipboard", ["the browser's", "none, as over plain HTTP"])
def test_seeds_are_copied(playground: Playground, clipboard: str) -> None:
    page = playground.page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    if clipboard != "the browser's":
        page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    playground.generate(images=2)
    playground.wait_for(2, "done")
    playground.tile(8).get_by_role("button", name="Copy the seed").click()
    expect(page.get_by_role("status")).to_have_text("Seed 8 copied")
    playground.fill(seed="")
    page.keyboard.press("Control+V")
    expect(page.get_by_label("Seed", exact=True)).to_have_value("8")
    playground.tile(7).locator(".open").click()
    page.get_by_role("dialog").get_by_role("button", name="Copy the seed").click()
    expect(page.get_by_role("status")).to_have_text("Seed 7 copied")
    page.keyboard.press("Escape")
    playground.fill(seed="")
    page.keyboard.press("Control+V")
    expect(page.get_by_label("Seed", exact=True)).to_have_value("7")
