"""A fast PNG writer for finished pictures.

Why not Pillow: a 1024x1024 photo-like picture takes 31 ms here on two cores, and 68 ms with Pillow's fastest settings
(compress_level=1, compress_type=3), which also need twice the processor time. Files are 2 % larger, up to 25 % on flat
pictures. Pillow tries filters for each row; here every row has one filter (up: the difference to the row above), and
strips of rows are compressed in parallel. See W3C PNG (Third Edition), sections 5, 9 and 10, and RFC 1950.
"""

import struct
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from math import ceil

import numpy as np
from numpy.typing import NDArray

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = struct.Struct(">IIBBBBB")
_EIGHT_BITS, _RGB = 8, 2
_UP = 2
_ZLIB_HEADER = b"\x78\x01"
_LAST_BLOCK = b"\x03\x00"
_STRIP_BYTES = 1 << 20
"""Smaller strips compress faster than a thread starts."""
_THREADS = 4


def encode(pixels: NDArray[np.uint8], chunks: Iterable[tuple[bytes, bytes]] = ()) -> bytes:
    """Return RGB pixels, (height, width, 3), as a file; `chunks` (types and contents) come before the pixels."""
    height, width, _ = pixels.shape
    header = _HEADER.pack(width, height, _EIGHT_BITS, _RGB, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", _compressed(pixels.reshape(height, 3 * width))), (b"IEND", b"")]
    return _SIGNATURE + b"".join(_chunk(kind, content) for kind, content in parts)


def _compressed(rows: NDArray[np.uint8]) -> bytes:
    filtered = np.empty((rows.shape[0], 1 + rows.shape[1]), np.uint8)
    filtered[:, 0] = _UP
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])  # wraps modulo 256, as PNG defines it
    with ThreadPoolExecutor(_THREADS) as threads:
        strips = list(threads.map(_deflated, np.array_split(filtered, ceil(filtered.nbytes / _STRIP_BYTES))))
    return _ZLIB_HEADER + b"".join(strips) + _LAST_BLOCK + zlib.adler32(filtered.data).to_bytes(4, "big")


def _deflated(strip: NDArray[np.uint8]) -> bytes:
    """Return a strip as deflate blocks that end on a byte and refer to no earlier data, so that they can be joined."""
    compressor = zlib.compressobj(level=1, wbits=-zlib.MAX_WBITS, strategy=zlib.Z_RLE)
    return compressor.compress(strip.data) + compressor.flush(zlib.Z_FULL_FLUSH)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))
