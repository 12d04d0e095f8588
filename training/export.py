"""Stage 6: write the trained weights as a float16 diffusers folder that any SDXL pipeline can load.

python -m training.export --to serve_app/models/<name>
"""

import json
import shutil
import tempfile
from pathlib import Path

from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

from training.config import Config, load_config, stage_arguments
from training.models import make_text_to_image, make_tiny, make_vae
from training.runner import load_weights
from training.vocabulary import load_tokenizer

PREVIEW_FOLDER = "preview_vae"
"""The subfolder of the preview decoder."""


def export(config: Config, weights: Path, folder: Path) -> int:
    """Write the pipeline and the preview decoder to `folder`, replacing it; return its size in bytes."""
    tokenizer = load_tokenizer(config.data.vocabulary, config.data.max_tokens)
    model = make_text_to_image(config, len(tokenizer))
    vae = make_vae(config.vae.model)
    tiny = make_tiny(config.tiny.width, config.vae.model["latent_channels"])
    for module, name in ((model, "unet"), (vae, "vae"), (tiny, "tiny")):
        if not load_weights(module, weights, name):
            raise FileNotFoundError(f"{weights}: no weights of {name}")
        module.half()
    pipe = StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=model.text,
        text_encoder_2=model.text_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=model.unet,
        scheduler=EulerDiscreteScheduler(**config.schedule),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as made:
        pipe.save_pretrained(made, safe_serialization=True)
        tiny.save_pretrained(Path(made) / PREVIEW_FOLDER, safe_serialization=True)
        _without_unused_setting(Path(made) / PREVIEW_FOLDER / "config.json")
        for name in ("tokenizer", "tokenizer_2"):
            _keep_clip_format(config.data.vocabulary, Path(made) / name)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(made, folder)
    # Weight files are written readable only by their owner; files of a package must be readable by all.
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _keep_clip_format(vocabulary: Path, tokenizer: Path) -> None:
    # SDXL's checkpoints have these two files. transformers writes tokenizer.json instead, with the same content.
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(vocabulary / name, tokenizer / name)
    (tokenizer / "tokenizer.json").unlink(missing_ok=True)


def _without_unused_setting(file: Path) -> None:
    # diffusers writes a key for AutoencoderTiny about which it then warns at every load.
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings.pop("block_out_channels", None)
    file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = stage_arguments("write the diffusers folder")
    parser.add_argument("--to", type=Path, required=True)
    args = parser.parse_args()
    size = export(load_config(args.config, args.changes), args.out, args.to)
    print(f"{args.to}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
