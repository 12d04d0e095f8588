"""Run every stage for a few seconds on the CPU, at a tiny size, only to check that the code runs.

python -m training.smoke
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

_SMALL = {
    "minutes": 0.02,
    "checkpoint_minutes": 1,
    "log_every": 5,
    "grid_seeds": 1,
    "vae.batch": 4,
    "vae.crop": 32,
    "vae.model.block_out_channels": [8, 8, 8, 8],
    "tiny.batch": 4,
    "tiny.crop": 32,
    "unet.batch": 2,
    "unet.small_batch": 4,
    "unet.small_every": 2,
    "unet.rounds": 1,
    "unet.small_rounds": 1,
    "unet.encode_batch": 4,
    "unet.model.block_out_channels": [16, 16, 32],
    "unet.model.attention_head_dim": [2, 2, 2],
    "text.width": 32,
    "lora.batch": 4,
    "lora.rounds": 1,
    "classifier.batch": 4,
    "classifier.width": 8,
}
_STAGES = (
    ["render", "--limit", "24"],
    ["train_vae"],
    ["train_vae", "--set", "vae.freeze_encoder=true"],
    ["train_tiny"],
    ["train_unet"],
    ["train_unet"],  # again, to resume from its weights
    ["train_classifier"],
)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        values = {
            **_SMALL,
            "data.pictures": f"{folder}/pictures",
            "data.vocabulary": f"{folder}/vocabulary",
            "data.mascot": f"{folder}/mascot",
        }
        common = ["--out", f"{folder}/weights"]
        for key, value in values.items():
            common += ["--set", f"{key}={value}"]
        lora = ["train_lora", "--set", f"lora.model={folder}/model", "--set"]
        for stage, *more in (
            *_STAGES,
            ["export", "--to", f"{folder}/model"],
            ["mascot"],
            [*lora, "lora.name=blueprint"],
            [*lora, "lora.name=zibo"],
        ):
            print(f"--- {stage} {' '.join(more)}", flush=True)
            subprocess.run(
                [sys.executable, "-m", f"training.{stage}", *more, *common],
                check=True,
                env={**os.environ, "ACCELERATE_USE_CPU": "true"},
            )
        print(f"{len(list(Path(folder, 'model').rglob('*.safetensors')))} weight files written")


if __name__ == "__main__":
    main()
