"""The commands and their options. A command's code is imported only when it runs, so that --help is fast."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serve_app import __version__
from serve_app.cli.options import (
    OUT,
    URL,
    By,
    FirstSeed,
    Format,
    Guidance,
    Loras,
    Model,
    Negative,
    Negative2,
    Out,
    OwnInit,
    OwnMask,
    OwnModel,
    Picture,
    Prompt,
    Prompt2,
    Rescale,
    Scheduler,
    Seeds,
    Sheet,
    Sized,
    Steps,
    Url,
    file_option,
    sent_loras,
    utf8,
)
from serve_app.cli.refusals import refusals

if TYPE_CHECKING:
    from rich.console import Console

    from serve_app.cli.service import Service

_EXIT_CODES = (
    "Exit codes: 0 success; 1 images are missing, or the picture is not the same; 2 the command, a setting or a "
    "file is invalid; 3 the service cannot be reached, is busy, or needs a key; 4 a bug in the command "
    "(PARALLEL_SDXL_TRACEBACK=1 shows where); 130 interrupted; 141 the reader of the output has gone."
)

app = typer.Typer(
    help="Generate images with a parallel-sdxl service, and reproduce its pictures.",
    epilog=_EXIT_CODES,
    no_args_is_help=True,
    rich_markup_mode=None,  # its tables cut off option names in a narrow terminal
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"parallel-sdxl {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


@app.command(epilog=_EXIT_CODES)
def generate(
    prompt: Prompt,
    model: Model = None,
    num_images: Annotated[
        int | None, typer.Option("--num-images", "-n", help="How many images, each with its own seed.")
    ] = None,
    seed: FirstSeed = None,
    seeds: Annotated[
        Seeds | None, typer.Option(parser=Seeds.parse, metavar="7,8,1234", help="The seeds, instead of --seed and -n.")
    ] = None,
    negative_prompt: Negative = None,
    prompt_2: Prompt2 = None,
    negative_prompt_2: Negative2 = None,
    prompt_syntax: Annotated[
        str | None, typer.Option(help="plain, or weighted to read (word:1.3), [word] and BREAK.")
    ] = None,
    size: Sized = None,
    steps: Steps = None,
    guidance: Guidance = None,
    guidance_rescale: Rescale = None,
    scheduler: Scheduler = None,
    sigma_schedule: Annotated[
        str | None,
        typer.Option(help="karras, exponential, beta, sgm_uniform or align_your_steps, if the scheduler can."),
    ] = None,
    lora: Loras = None,
    init: Annotated[
        Path | None, file_option("--init", "A picture to go on from: a PNG, JPEG, WebP, GIF or BMP.")
    ] = None,
    mask: Annotated[
        Path | None, file_option("--mask", "Which part of it to generate anew: a picture that is white there.")
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="How far to go from the picture, 0 to 1; 0.6 by default, or 1 with a mask.")
    ] = None,
    mask_blur: Annotated[int | None, typer.Option(metavar="PIXELS", help="How softly the mask ends.")] = None,
    padding_mask_crop: Annotated[
        int | None,
        typer.Option(metavar="PIXELS", help="Generate only the masked part and so much around it, at full size."),
    ] = None,
    keep_outside: Annotated[
        bool | None,
        typer.Option("--keep-outside/--no-keep-outside", help="Keep the picture's own pixels outside the mask."),
    ] = None,
    output_format: Format = None,
    output_compression: Annotated[
        int | None, typer.Option("--compression", help="Quality of jpeg and webp files, 0 to 100.")
    ] = None,
    preview_every: Annotated[
        int | None,
        typer.Option(help="Show previews, if the terminal can, after step 1 and every multiple of this; 0: never."),
    ] = None,
    grid: Sheet = None,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Stop then, and keep the images that are finished.")
    ] = None,
    out: Out = OUT,
    url: Url = URL,
) -> None:
    """Generate images of a prompt and write them to files.

    The service chooses whatever you leave out; `info` shows its choices. Files are named seed-7.png and grid.png, or
    seed-7-2.png if the name is taken: nothing is overwritten. Ctrl-C cancels unfinished images on the service too;
    finished images stay.
    """
    several = num_images != 1 and (seeds is None or len(seeds.seeds) > 1)
    given = {
        "prompt": prompt,
        "model": model,
        "num_images": num_images,
        "seed": seed,
        "seeds": list(seeds.seeds) if seeds else None,
        "negative_prompt": negative_prompt,
        "prompt_2": prompt_2,
        "negative_prompt_2": negative_prompt_2,
        "prompt_syntax": prompt_syntax,
        "width": size.width if size else None,
        "height": size.height if size else None,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "guidance_rescale": guidance_rescale,
        "scheduler": scheduler,
        "sigma_schedule": sigma_schedule,
        "loras": sent_loras(lora),
        "strength": strength,
        "mask_blur": mask_blur,
        "padding_mask_crop": padding_mask_crop,
        "keep_outside": keep_outside,
        "output_format": output_format,
        "output_compression": output_compression,
        "preview_every": preview_every,
        "grid": several if grid is None else grid,
        "timeout_s": timeout,
    }
    from serve_app.cli import generate as command
    from serve_app.cli.pictures import sent

    files = {name: sent(file) for name, file in (("init_image", init), ("mask_image", mask)) if file}
    settings = {name: value for name, value in given.items() if value is not None}
    with refusals():
        command.generate(_service(url), {**settings, **files}, out, _console())


@app.command(epilog=_EXIT_CODES)
def explore(
    prompt: Prompt,
    model: Model = None,
    num_images: Annotated[int, typer.Option("--num-images", "-n", help="How many sketches.")] = 16,
    sketch: Annotated[int, typer.Option(metavar="STEP", help="After which step they stop.")] = 6,
    keep: Annotated[
        Seeds | None, typer.Option(parser=Seeds.parse, metavar="7,9", help="The seeds to finish, without being asked.")
    ] = None,
    best: Annotated[
        int | None, typer.Option(metavar="N", help="Let the service choose so many and finish them, without asking.")
    ] = None,
    by: By = None,
    then: Annotated[
        str | None, typer.Option(callback=utf8, metavar="PROMPT", help="What those that are kept go on as.")
    ] = None,
    seed: FirstSeed = None,
    negative_prompt: Negative = None,
    size: Sized = None,
    steps: Steps = None,
    guidance: Guidance = None,
    scheduler: Scheduler = None,
    lora: Loras = None,
    output_format: Format = None,
    out: Out = OUT,
    url: Url = URL,
) -> None:
    """Sketch many images of a prompt, choose or let the service choose, and finish only those.

    Finished pictures are written as `generate` does, the same as if they had never stopped; with --then as `branch`
    does, the same as if it had been asked for at once. Ctrl-C cancels all.
    """
    given = {
        "prompt": prompt,
        "model": model,
        "num_images": num_images,
        "pause_after": sketch if best is None else None,
        "keep": None if best is None else {"at_step": sketch, "best": best, "by": "sharpness" if by is None else by},
        "seed": seed,
        "negative_prompt": negative_prompt,
        "width": size.width if size else None,
        "height": size.height if size else None,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "scheduler": scheduler,
        "loras": sent_loras(lora),
        "output_format": output_format,
    }
    settings = {name: value for name, value in given.items() if value is not None}
    if best is None and by is not None:
        raise typer.BadParameter("needs --best: without it somebody chooses", param_hint="--by")
    if best is not None and (keep or then is not None):
        raise typer.BadParameter("goes without --keep and --then: the service chooses", param_hint="--best")
    from serve_app.cli import explore as asking
    from serve_app.cli.generate import generate as finish

    with refusals():
        if best is None:
            asking.explore(_service(url), settings, keep.seeds if keep else None, then, out, _console())
        else:
            finish(_service(url), settings, out, _console())


@app.command(epilog=_EXIT_CODES)
def reproduce(
    picture: Picture,
    out: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Folder for the new picture; by default it is not kept."),
    ] = None,
    init: OwnInit = None,
    mask: OwnMask = None,
    model: OwnModel = None,
    url: Url = URL,
) -> None:
    """Generate a picture again from the parameters in it, and compare every pixel."""
    from serve_app.cli import reproduce as command

    files = {"init_image": (init, "--init"), "mask_image": (mask, "--mask")}
    same = command.reproduce(_service(url), picture, files, model, out, _console())
    raise typer.Exit(0 if same else 1)


@app.command(epilog=_EXIT_CODES)
def vary(
    picture: Picture,
    num_images: Annotated[int, typer.Option("--num-images", "-n", help="How many relatives.")] = 4,
    strength: Annotated[
        float, typer.Option(help="How far they are from the picture: 0.1 is near, 1 another seed's picture.")
    ] = 0.2,
    variation_seed: Annotated[
        int | None, typer.Option(help="Seed of the first relative's variation; the next ones count up. Random.")
    ] = None,
    grid: Sheet = None,
    init: OwnInit = None,
    mask: OwnMask = None,
    model: OwnModel = None,
    out: Out = OUT,
    url: Url = URL,
) -> None:
    """Generate relatives of a picture, from the parameters in it.

    A relative has relatives too: name its file.
    """
    from serve_app.cli import vary as command

    files = {"init_image": (init, "--init"), "mask_image": (mask, "--mask")}
    if strength == 0:
        raise typer.BadParameter("at 0 they are the picture itself", param_hint="--strength")
    variation = {"strength": strength, "seed": variation_seed}
    sheet = num_images > 1 if grid is None else grid
    with refusals():
        command.vary(_service(url), picture, files, model, variation, num_images, sheet, out, _console())


@app.command(epilog=_EXIT_CODES)
def branch(
    picture: Picture,
    from_step: Annotated[int, typer.Option(metavar="STEP", help="The last step that is the picture's own.")],
    prompt: Annotated[str | None, typer.Option(callback=utf8, help="What to generate from there on.")] = None,
    negative_prompt: Negative = None,
    prompt_2: Prompt2 = None,
    negative_prompt_2: Negative2 = None,
    guidance: Guidance = None,
    guidance_rescale: Rescale = None,
    init: OwnInit = None,
    mask: OwnMask = None,
    model: OwnModel = None,
    out: Out = OUT,
    url: Url = URL,
) -> None:
    """Generate a picture again up to a step, and from there on what is asked for here.

    What is left out stays as it is. A branch has branches too: name its file.
    """
    given = {
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "prompt_2": prompt_2,
        "negative_prompt_2": negative_prompt_2,
        "guidance_scale": guidance,
        "guidance_rescale": guidance_rescale,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    if not changes:
        raise typer.BadParameter("say what to generate from there on", param_hint="--prompt")
    from serve_app.cli import branch as command

    files = {"init_image": (init, "--init"), "mask_image": (mask, "--mask")}
    with refusals(prompt="--prompt"):
        command.branch(_service(url), picture, files, model, from_step, changes, out, _console())


@app.command(epilog=_EXIT_CODES)
def info(picture: Picture) -> None:
    """Print the parameters in a picture."""
    from serve_app.cli import info as command

    command.info(picture, _console())


def _service(url: str) -> "Service":
    from serve_app.cli.route import Route
    from serve_app.cli.service import KEY_VARIABLE, Service

    return Service(Route.to(url), os.environ.get(KEY_VARIABLE, "").strip() or None)


def _console() -> "Console":
    from rich.console import Console

    return Console()
