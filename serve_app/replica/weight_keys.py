"""Checks that a model's files hold exactly its weights: loaders fill missing ones with random numbers."""

from collections.abc import Collection

from serve_app.replica.sources import Part

# Tensors that belong to no layer, or to layers that generation does not use.
_HARMLESS_ENDS = ("position_ids", "logit_scale", "text_projection", "text_projection.weight")
_HARMLESS_STARTS = ("loss.", "model_ema.")
_MOST_NAMED = 3


def check_keys(
    part: Part,
    missing: Collection[str] = (),
    unexpected: Collection[str] = (),
    misshapen: Collection[str] = (),
    quantized: Collection[str] = (),
) -> None:
    """Raise CheckpointError if weights are missing, unexpected, misshapen or quantized."""
    unknown = [key for key in unexpected if not key.endswith(_HARMLESS_ENDS) and not key.startswith(_HARMLESS_STARTS)]
    integers = [key for key in quantized if not key.endswith("position_ids")]
    configs = "; its config is SDXL's, or that in model.config_path" if part.single and part.setting == "path" else ""
    for words, keys, advice in (
        ("lacks weights", missing, ""),
        ("holds weights that its config does not have", unknown, configs),
        ("holds weights whose shapes differ from its config", misshapen, configs),
        ("holds quantized weights, which are not supported", integers, ""),
    ):
        if keys:
            more = f" and {len(keys) - _MOST_NAMED} more" if len(keys) > _MOST_NAMED else ""
            raise part.fault(f"{words}: {', '.join(sorted(keys)[:_MOST_NAMED])}{more}{advice}")
