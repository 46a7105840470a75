"""What every implementation does with one request."""

import logging

from dunlin import wire
from dunlin.bus import stats
from dunlin.bus.base import BusUnavailable, Handler
from dunlin.events.rpc import Failure

log = logging.getLogger("dunlin.bus")


async def answer(handler: Handler, subject: str, data: bytes) -> bytes:
    """The handler's reply, or a `Failure` if it raised (`retry` when it lacked the bus)."""
    try:
        return await handler(subject, data)
    except BusUnavailable as error:
        stats.HANDLER_ERRORS[subject] += 1
        log.warning("request failed subject=%s: %s", subject, error)
        return wire.encode(Failure(reason=str(error), retry=True))
    except Exception as error:
        stats.HANDLER_ERRORS[subject] += 1
        log.exception("request failed subject=%s", subject)
        return wire.encode(Failure(reason=f"{type(error).__name__}: {error}"))
