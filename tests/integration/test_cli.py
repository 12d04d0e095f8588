"""The command line against the running service."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np
import pytest
from PIL import Image

from serve_app.metadata import embedded_parameters
from tests.cli.command import run
from tests.integration.conftest import Running
from tests.integration.test_generate import picture

SMALL = ("--size", "64x64", "--steps", 4)
LONG = ("--size", "64x64", "--steps", 998)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def opened(path: Path) -> Image.Image:
    return Image.open(io.BytesIO(path.read_bytes()))


@pytest.fixture
def generate(app: Running, tmp_path: Path) -> Callable[..., None]:
    """Generate into tmp_path, or fail: generate(PROMPT, options ...)."""

    def generate(*args: object) -> None:
        done = run("generate", *args, *SMALL, "--out", tmp_path, "--url", app.url)
        assert done.returncode == 0, done.stdout + done.stderr

    return generate


def test_images_are_named_by_seed_and_are_those_of_the_service(app: Running, tmp_path: Path) -> None:
    done = run(
        "generate",
        "a red apple",
        "-n",
        3,
        "--seed",
        7,
        *SMALL,
        "--out",
        tmp_path / "new" / "folder",
        PARALLEL_SDXL_URL=app.url,
    )
    assert done.returncode == 0, done.stderr
    out = tmp_path / "new" / "folder"
    assert names(out) == ["grid.png", "seed-7.png", "seed-8.png", "seed-9.png"]
    for image in app.generate(num_images=3, seed=7)["images"]:
        assert np.array_equal(np.asarray(opened(out / f"seed-{image['seed']}.png")), picture(image["b64_json"]))
    assert opened(out / "grid.png").size == (128, 128)


def test_output_that_is_no_terminal_is_plain_lines(app: Running, tmp_path: Path) -> None:
    done = run(
        "generate",
        "a red apple",
        "-n",
        2,
        "--seed",
        7,
        *SMALL,
        "--out",
        tmp_path,
        "--url",
        app.url,
        FORCE_COLOR="1",
        COLORTERM="truecolor",
    )
    lines = done.stdout.splitlines()
    assert "tiny: 2 images of 64x64, 4 steps of euler, guidance 5" in lines[0]
    for seed in (7, 8):
        assert [line for line in lines if line.endswith(f"seed {seed}  done: seed-{seed}.png")]
    assert "2 of 2 images and grid.png" in lines[-1]
    assert not any(control in done.stdout for control in ("\x1b[1A", "\x1b[2K", "\r", "▀")), (
        "nothing is moved or erased"
    )


def test_every_option_reaches_the_service(app: Running, tmp_path: Path) -> None:
    options = ("--seeds", "3,1", "--negative-prompt", "dull", "--size", "64x128", "--steps", 3, "--guidance", 2.5)
    sampling = ("--scheduler", "ddim", "--sigma-schedule", "sgm_uniform")
    more = ("--format", "webp", "--compression", 80, "--grid", "--preview-every", 1)
    done = run("generate", "a pear", *options, *sampling, *more, "--out", tmp_path, "--url", app.url)
    assert done.returncode == 0, done.stderr
    assert names(tmp_path) == ["grid.webp", "seed-1.webp", "seed-3.webp"]
    embedded = embedded_parameters(opened(tmp_path / "seed-1.webp"))
    assert embedded
    assert embedded.request.model_dump(exclude_unset=True) == {
        "prompt": "a pear",
        "negative_prompt": "dull",
        "seed": 1,
        "num_images": 1,
        "width": 64,
        "height": 128,
        "num_inference_steps": 3,
        "guidance_scale": 2.5,
        "guidance_rescale": 0.0,
        "prompt_syntax": "plain",
        "scheduler": "ddim",
        "sigma_schedule": "sgm_uniform",
        "output_format": "webp",
        "output_compression": 80,
    }


def test_one_image_needs_no_grid(generate: Callable[..., None], tmp_path: Path) -> None:
    generate("a red apple", "-n", 1, "--seed", 7)
    generate("a red apple", "--seeds", 8)
    generate("a red apple", "-n", 2, "--seed", 9, "--no-grid")
    assert names(tmp_path) == ["seed-10.png", "seed-7.png", "seed-8.png", "seed-9.png"]


def test_no_picture_overwrites_another(generate: Callable[..., None], tmp_path: Path) -> None:
    generate("a red apple", "-n", 2, "--seed", 7)
    first = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    generate("a red apple", "-n", 2, "--seed", 7)
    assert names(tmp_path) == list(first), "the same pictures are there already"
    generate("a green pear", "-n", 2, "--seed", 7)
    assert names(tmp_path) == sorted([*first, "grid-2.png", "seed-7-2.png", "seed-8-2.png"])
    assert {name: (tmp_path / name).read_bytes() for name in first} == first


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--steps", 1000), "--steps: num_inference_steps: "),
        (("--size", "65x64"), "--size: width: "),
        (("--seeds", "7,-1"), "--seeds: seeds.1: "),
        (("--seeds", "7,7"), "--seeds: seeds: must be distinct"),
        (("--scheduler", "best"), "'dpmpp_2m_karras'"),
        (("--format", "gif"), "--format: output_format: "),
    ],
)
def test_a_setting_that_the_service_refuses_is_named_by_its_option(
    app: Running, tmp_path: Path, options: tuple[object, ...], named: str
) -> None:
    done = run("generate", "a red apple", *options, "--out", tmp_path, "--url", app.url)
    assert done.returncode == 2
    assert named in done.stderr
    assert names(tmp_path) == []


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_a_picture_is_reproduced_exactly(
    app: Running, generate: Callable[..., None], tmp_path: Path, output_format: str
) -> None:
    generate(
        "a red apple",
        "-n",
        1,
        "--seed",
        7,
        "--format",
        output_format,
        "--negative-prompt",
        "dull",
        "--scheduler",
        "euler_a",
    )
    picture = tmp_path / f"seed-7.{output_format}"
    done = run("reproduce", picture, "--out", tmp_path / "again", "--url", app.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert "the same: every pixel" in done.stdout.splitlines()[-1]
    assert "generated it" not in done.stdout, "no note of another model or version"
    assert (tmp_path / "again" / picture.name).read_bytes() == picture.read_bytes()


def test_a_picture_has_relatives_and_they_have_theirs(
    app: Running, generate: Callable[..., None], tmp_path: Path
) -> None:
    generate("a red apple", "-n", 1, "--seed", 7, "--scheduler", "euler_a")
    where = ("--out", tmp_path, "--url", app.url)
    done = run("vary", tmp_path / "seed-7.png", "-n", 2, "--variation-seed", 100, "--strength", 0.3, *where)
    assert (done.returncode, done.stderr) == (0, "")
    assert names(tmp_path) == ["grid.png", "seed-7-v100.png", "seed-7-v101.png", "seed-7.png"]
    done = run("vary", tmp_path / "seed-7-v101.png", "-n", 1, "--variation-seed", 5, *where)
    assert (done.returncode, done.stderr) == (0, "")
    youngest = tmp_path / "seed-7-v101-v5.png"
    assert "the same: every pixel" in run("reproduce", youngest, "--url", app.url).stdout
    refused = run("vary", youngest, "--strength", 1.5, *where)
    assert (refused.returncode, "--strength: variations.2.strength" in refused.stderr) == (2, True)
    refused = run("vary", youngest, "--strength", 0, *where)
    assert (refused.returncode, "--strength: at 0 they are the picture itself" in refused.stderr) == (2, True)
    refused = run("vary", youngest, "--variation-seed", -5, *where)
    assert (refused.returncode, "--variation-seed: variations.2.seed" in refused.stderr) == (2, True)


def test_branches_of_branches_are_reproduced_from_their_files(
    app: Running, generate: Callable[..., None], tmp_path: Path
) -> None:
    generate("a red apple", "-n", 1, "--seed", 7, "--scheduler", "euler_a")
    where = ("--out", tmp_path, "--url", app.url)
    done = run("branch", tmp_path / "seed-7.png", "--from-step", 1, "--prompt", "a pear", *where)
    assert (done.returncode, done.stderr) == (0, "")
    done = run("branch", tmp_path / "seed-7-2.png", "--from-step", 3, "--guidance", 1, *where)
    assert (done.returncode, done.stderr) == (0, "")
    assert names(tmp_path) == ["seed-7-2.png", "seed-7-3.png", "seed-7.png"]
    embedded = embedded_parameters(opened(tmp_path / "seed-7-3.png"))
    assert embedded is not None
    assert [(phase.until_step, phase.settings) for phase in embedded.request.before] == [
        (1, {"prompt": "a red apple", "guidance_scale": 5.0}),
        (3, {"guidance_scale": 5.0}),
    ]
    for name in names(tmp_path):
        assert "the same: every pixel" in run("reproduce", tmp_path / name, "--url", app.url).stdout
    refused = run("branch", tmp_path / "seed-7.png", "--from-step", 4, "--prompt", "a pear", *where)
    assert (refused.returncode, "--from-step: the picture can be left after" in refused.stderr) == (2, True)
    refused = run("branch", tmp_path / "seed-7.png", "--from-step", 2, "--prompt", "", *where)
    assert (refused.returncode, "--prompt: " in refused.stderr) == (2, True)


def test_a_picture_that_went_on_from_others_is_reproduced_from_them(
    app: Running, generate: Callable[..., None], tmp_path: Path
) -> None:
    photo, mask = tmp_path / "photo.png", tmp_path / "mask.png"
    Image.new("RGB", (64, 64), "red").save(photo)
    Image.new("L", (64, 64), 255).save(mask)
    generate("a", "-n", 1, "--seed", 7, "--init", photo, "--mask", mask, "--strength", "0.5")
    asked = run("reproduce", tmp_path / "seed-7.png", "--url", app.url)
    assert (asked.returncode, "name that file with --init" in asked.stderr) == (2, True)
    done = run("reproduce", tmp_path / "seed-7.png", "--init", photo, "--mask", mask, "--url", app.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert "the same: every pixel" in done.stdout.splitlines()[-1]


def saved_again(picture: Path, pixels: Image.Image, xmp: bytes | None = None) -> Path:
    """Write other pixels with the XMP of a picture, or other XMP."""
    changed = picture.with_name("changed.webp")
    pixels.save(changed, lossless=True, xmp=xmp or opened(picture).info["xmp"])
    return changed


def test_a_changed_picture_is_reported_with_how_it_differs(
    app: Running, generate: Callable[..., None], tmp_path: Path
) -> None:
    generate("a red apple", "-n", 1, "--seed", 7)
    image = opened(tmp_path / "seed-7.png").convert("RGB")
    red, green, blue = image.getpixel((5, 6))  # type: ignore[misc]  # three numbers, of RGB
    image.putpixel((5, 6), (red ^ 128, green, blue))
    done = run("reproduce", saved_again(tmp_path / "seed-7.png", image), "--url", app.url)
    assert done.returncode == 1
    assert "not the same (46.9 dB PSNR): 1 of 4096 pixels differ" in done.stdout
    assert "red    at most 128 of 255, 0.0312 on average" in done.stdout
    assert "green  at most 0 of 255, 0.0000 on average" in done.stdout


def test_a_picture_that_was_rounded_otherwise_is_the_same_picture(
    app: Running, generate: Callable[..., None], tmp_path: Path
) -> None:
    generate("a red apple", "-n", 1, "--seed", 7)
    image = opened(tmp_path / "seed-7.png").convert("RGB")
    red, green, blue = image.getpixel((5, 6))  # type: ignore[misc]  # three numbers, of RGB
    image.putpixel((5, 6), (red ^ 2, green, blue))
    done = run("reproduce", saved_again(tmp_path / "seed-7.png", image), "--url", app.url)
    assert done.returncode == 1, "what a script that wants the same bits asks for"
    assert "the same picture with rounding differences (83.0 dB PSNR): 1 of 4096 pixels differ" in done.stdout


def test_a_resized_picture_is_not_the_same(app: Running, generate: Callable[..., None], tmp_path: Path) -> None:
    generate("a red apple", "-n", 1, "--seed", 7)
    done = run("reproduce", saved_again(tmp_path / "seed-7.png", Image.new("RGB", (32, 16))), "--url", app.url)
    assert done.returncode == 1
    assert " ".join(done.stdout.split()).endswith(" is 32x16, but was generated as 64x64"), "wrapped or not"


def test_another_model_or_version_is_told_of_first(app: Running, generate: Callable[..., None], tmp_path: Path) -> None:
    generate("a red apple", "-n", 1, "--seed", 7)
    image = opened(tmp_path / "seed-7.png")
    embedded = embedded_parameters(image)
    assert embedded
    theirs = {**embedded.request.model_dump(exclude_unset=True, exclude={"num_images"}), "version": "0.0.9"}
    theirs["model"] = {"name": "other", "revision": None, "hash": "abcdefabcd"}
    packet = f'<a xmlns:psdxl="urn:parallel-sdxl:1" psdxl:parameters={quoteattr(json.dumps(theirs))}/>'
    done = run("reproduce", saved_again(tmp_path / "seed-7.png", image, packet.encode()), "--url", app.url)
    assert done.returncode == 0, "the pixels are the same all the same"
    assert done.stdout.startswith(
        f"note: another model generated it: other (abcdefabcd); the service has tiny ({embedded.model.hash})\n"
    )
    assert "note: another version generated it: 0.0.9" in done.stdout.splitlines()[1]


def test_a_picture_beyond_the_limits_of_the_service_is_refused(app: Running, tmp_path: Path) -> None:
    parameters = {
        "prompt": "a",
        "seed": 1,
        "width": 1024,
        "height": 1024,
        "model": {"name": "m", "revision": None, "hash": "1"},
        "version": "1",
    }
    packet = f'<a xmlns:psdxl="urn:parallel-sdxl:1" psdxl:parameters={quoteattr(json.dumps(parameters))}/>'
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "WEBP", xmp=packet.encode())
    (tmp_path / "large.webp").write_bytes(file.getvalue())
    done = run("reproduce", tmp_path / "large.webp", "--url", app.url)
    assert done.returncode == 2
    assert "the service refuses this: width: Input should be less than or equal to 256" in done.stderr


def test_info_tells_what_generated_a_picture(generate: Callable[..., None], tmp_path: Path) -> None:
    generate('a "red" apple', "-n", 2, "--seed", 7)
    done = run("info", tmp_path / "seed-8.png")
    assert done.returncode == 0, done.stderr
    told = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if len(line.split()) > 1)
    assert {name: told[name] for name in ("prompt", "seed", "width", "scheduler")} == {
        "prompt": 'a "red" apple',
        "seed": "8",
        "width": "64",
        "scheduler": "euler",
    }
    grid = run("info", tmp_path / "grid.png")
    assert grid.returncode == 2
    assert "holds no parameters" in grid.stderr


def test_sketches_are_finished_by_seed_where_nobody_can_be_asked(app: Running, tmp_path: Path) -> None:
    command = ("explore", "a red apple", "-n", 3, "--seed", 7, "--size", "64x64", "--steps", 9, "--url", app.url)
    done = run(*command, "--keep", "9", "--out", tmp_path)
    assert (done.returncode, names(tmp_path)) == (0, ["seed-9.png"]), done.stdout + done.stderr
    assert "sketch, step 6/9" in done.stdout
    assert "6 of 27 steps were not made" in done.stdout
    done = run(*command, "--keep", "8", "--then", "a green frog", "--out", tmp_path)
    assert (done.returncode, names(tmp_path)) == (0, ["seed-8.png", "seed-9.png"]), done.stdout + done.stderr
    assert run("reproduce", tmp_path / "seed-8.png", "--url", app.url).returncode == 0, "from its file alone"
    assert "a green frog" in run("info", tmp_path / "seed-8.png").stdout
    refused = run(*command, "--keep", "7", "--then", "x" * 2001, "--out", tmp_path)
    assert (refused.returncode, "--then" in refused.stderr) == (2, True), refused.stderr
    done = run(*command, "--best", "1", "--out", tmp_path / "best")
    assert (done.returncode, len(names(tmp_path / "best"))) == (0, 1), done.stdout + done.stderr
    assert done.stdout.count("not kept") == 2
    refused = run(*command, "--best", "3", "--out", tmp_path)
    assert (refused.returncode, "--best" in refused.stderr) == (2, True), refused.stderr
    refused = run(*command, "--keep", "7", "--by", "sharpness", "--out", tmp_path)
    assert (refused.returncode, "--by" in refused.stderr) == (2, True), "nothing compares them"
    refused = run(*command, "--keep", "7,10", "--out", tmp_path)
    assert refused.returncode == 2
    assert "no sketch of seed 10" in refused.stderr
    nobody = run(*command, "--out", tmp_path)
    assert nobody.returncode == 2
    assert "--keep" in nobody.stderr
