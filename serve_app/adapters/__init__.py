"""The files of adapters: which there are, what they say of themselves, and which cannot be served. No torch."""

from serve_app.adapters.folder import Adapter, AdapterFolder, Version

__all__ = ["Adapter", "AdapterFolder", "Version"]
