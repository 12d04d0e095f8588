"""What chat programs send, by their public sources; the suite and `make clients` send the same."""

from typing import Any

OPEN_WEBUI: dict[str, Any] = {
    "prompt": "a cat",
    "batch_size": 2,
    "width": 512,
    "height": 512,
    "steps": 30,
    "negative_prompt": "dull",
}
"""open-webui/open-webui, backend/open_webui/routers/images.py, `image_generations`, engine automatic1111."""

OPEN_WEBUI_OPENAI: dict[str, Any] = {
    "model": "gpt-image-1",
    "prompt": "a cat",
    "n": 1,
    "size": "512x512",
    "response_format": "b64_json",
}
"""The same function, engine openai."""

OPEN_WEBUI_EDIT: dict[str, str] = {
    "model": "gpt-image-1",
    "prompt": "a cat",
    "n": "1",
    "size": "512x512",
    "background": "auto",
    "response_format": "b64_json",
}
"""`image_edits` of that file, engine openai: a form; the picture is `image`, or `image[]` where it is a list."""

LIBRECHAT: dict[str, Any] = {
    "prompt": "a cat",
    "negative_prompt": "blurry",
    "cfg_scale": 4.5,
    "steps": 22,
    "width": 1024,
    "height": 1024,
}
"""danny-avila/LibreChat, api/app/clients/tools/structured/StableDiffusion.js, `_call`."""

LIBRECHAT_OPENAI: dict[str, Any] = {
    "model": "gpt-image-1",
    "prompt": "a cat",
    "n": 1,
    "background": "auto",
    "output_format": "png",
    "quality": "auto",
    "size": "auto",
}
"""OpenAIImageTools.js in the same folder, `imageGenTool`, by OpenAI's SDK."""

LIBRECHAT_EDIT: dict[str, str] = {"model": "gpt-image-1", "prompt": "a cat", "quality": "auto", "size": "auto"}
"""`imageEditTool` of that file: a form; the pictures are `image[]`."""

SILLYTAVERN: dict[str, Any] = {
    "url": "http://localhost:7860",
    "auth": "user:password",
    "prompt": "a cat",
    "negative_prompt": "lowres",
    "sampler_name": "DPM++ 2M",
    "scheduler": "Karras",
    "steps": 20,
    "cfg_scale": 7,
    "width": 512,
    "height": 512,
    "restore_faces": False,
    "enable_hr": False,
    "hr_upscaler": "Latent",
    "hr_scale": 1,
    "hr_additional_modules": [],
    "denoising_strength": 0.7,
    "hr_second_pass_steps": 0,
    "seed": 7,
    "override_settings": {"CLIP_stop_at_last_layers": 1},
    "override_settings_restore_afterwards": True,
    "clip_skip": 1,
    "save_images": True,
    "send_images": True,
    "do_not_save_grid": False,
    "do_not_save_samples": False,
}
"""SillyTavern/SillyTavern, public/scripts/extensions/stable-diffusion/index.js, `generateAutoImage`; its server
(src/endpoints/stable-diffusion.js) passes the whole body on, `url` and `auth` included."""
