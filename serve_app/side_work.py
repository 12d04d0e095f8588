"""Work beside a picture: once there is a picture, nothing beside it may cost it, or delay it for long.

Grids, URLs, what a file says of itself, metrics: where they fail, the log says why and the client is told what is
missing.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

logger = logging.getLogger("ray.serve")


@contextmanager
def side_work(loss: str, warnings: list[str] | None = None) -> Iterator[None]:
    """Log an error of the body instead of raising it, and add `loss`, a sentence on what is missing, to `warnings`."""
    try:
        yield
    except Exception:
        logger.exception(loss)
        if warnings is not None:
            warnings.append(loss)


@asynccontextmanager
async def brief_side_work(loss: str, warnings: list[str], seconds: float) -> AsyncIterator[None]:
    """Do as `side_work` does, and give up after some seconds: a file system may hang."""
    with side_work(loss, warnings):
        async with asyncio.timeout(seconds):
            yield
