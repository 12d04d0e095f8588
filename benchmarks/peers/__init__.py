"""Other ways to serve SDXL, each used as documented, with the same weights."""
