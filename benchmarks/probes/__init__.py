"""Single questions about the UNet and the compiler, each answered by a few lines of text."""
