"""LoRAs: reads their files, and says what each changes of the model's weights."""

from serve_app.replica.lora.delta import Delta
from serve_app.replica.lora.reading import LoraDeltas, Shapes, read_lora

__all__ = ["Delta", "LoraDeltas", "Shapes", "read_lora"]
