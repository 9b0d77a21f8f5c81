"""Bodies of requests: so large, so kind and so fast as they may be."""

import asyncio
from typing import Final

from aiohttp import web

from romancy.errors import PayloadTooLargeError, RequestTooSlowError

BODY_SECONDS: Final = 10.0
"""How long a body may take to come, from the end of its headers."""


async def read_body(request: web.Request, *, bytes_max: int) -> bytes:
    """The whole body.

    Raises:
        PayloadTooLargeError: it is larger; what has come by then is not kept.
        RequestTooSlowError: it took too long.
    """
    declared = request.content_length
    if declared is not None and declared > bytes_max:
        raise PayloadTooLargeError(what="the body", size_bytes=declared, max_bytes=bytes_max)
    found = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.content.iter_any():
                found += part
                if len(found) > bytes_max:
                    raise PayloadTooLargeError(what="the body", size_bytes=len(found), max_bytes=bytes_max)
    except TimeoutError as error:
        raise RequestTooSlowError(
            f"the body did not come within {BODY_SECONDS:g} s; {len(found):,} bytes had", hint="send it at once"
        ) from error
    return bytes(found)
