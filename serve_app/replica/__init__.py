"""The single-GPU actor: model loading, the denoising engine, previews, file encoding. The only room with torch."""
