"""Single questions to the UNet and the compiler, each answered by a few lines of text."""
