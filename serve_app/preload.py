"""Ray's worker processes import this when they start (`serve.preloading`), before it is known what they will be.

What each process of this service needs is imported at once; what replicas need beside, on a thread, until the process
turns out to be something else. These seconds pass while Ray and Serve start, or long before a replica is added.
"""

import logging
import threading

import ray

from serve_app.replica.imports import COMPILER, MODULES, for_good, hash_triton, import_all
from serve_app.threads import take_short_turns

with for_good():
    import serve_app.app  # noqa: F401, with Serve: what the builder, the ingress and Serve's own processes need

logger = logging.getLogger(__name__)


def _is_idle() -> bool:
    return ray.get_runtime_context().get_actor_id() is None


def _import() -> None:
    try:
        import_all((*MODULES, *COMPILER), while_=_is_idle)
        if _is_idle():
            hash_triton()
    except Exception:
        logger.exception("what replicas need could not be imported early")  # a replica will say why, where it is seen


take_short_turns()  # what the process turns out to be must not wait for these imports
threading.Thread(target=_import, name="imports", daemon=True).start()
