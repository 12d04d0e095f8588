"""The single-GPU actor: model loading, denoising engine, previews, file encoding. Other processes need no torch."""
