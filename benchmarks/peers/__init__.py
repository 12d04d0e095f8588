"""Other ways to serve SDXL, each used as its documentation says, on the same weights."""
