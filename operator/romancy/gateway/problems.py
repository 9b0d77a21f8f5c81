"""Errors as problem documents (RFC 9457): the status of each, and what a caller may know of it."""

import json
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import web

from romancy import errors
from romancy.base import log
from romancy.errors import RomancyError, TooManyRequestsError, UnauthenticatedError

LOG = log.get(__name__)

MEDIA_TYPE: Final = "application/problem+json"
TYPE_BASE: Final = "https://romancy.dev/errors/"
"""What `type` begins with: an identifier, as RFC 9457 allows it (section 3.1.1); the page is docs/errors/<reason>.md."""
RETRY_SECONDS: Final = 1
_STATUS: Final[dict[type[RomancyError], int]] = {
    errors.RequestInvalidError: 400,
    errors.EventInvalidError: 400,
    errors.FilterError: 400,
    errors.InputInvalidError: 400,
    errors.PayloadError: 400,
    errors.PayloadTooLargeError: 413,
    errors.SearchTooBroadError: 400,
    errors.UnauthenticatedError: 401,
    errors.ForbiddenError: 403,
    errors.RunNotFoundError: 404,
    errors.DeadLetterNotFoundError: 404,
    errors.WorkflowNotRegisteredError: 404,
    errors.RequestTooSlowError: 408,
    errors.RunExistsError: 409,
    errors.RetryRefusedError: 409,
    errors.MediaTypeError: 415,
    errors.TooManyRequestsError: 429,
    errors.AuthorityUnavailableError: 503,
    errors.StoreError: 503,
}
_RETRYABLE: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_TITLES: Final = {
    400: "The request is wrong",
    401: "Who calls is not known",
    403: "Not allowed",
    404: "Not found",
    405: "Not that way",
    408: "Too slow",
    409: "It contradicts what is there",
    413: "Too large",
    415: "Not that kind of content",
    429: "Too many requests",
    500: "An error of the engine",
    503: "Not now",
}


def status_of(error: RomancyError) -> int:
    """The HTTP status of an error: that of its nearest class; 500 for one that no request is to blame for."""
    return next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), 500)


def document(status: int, reason: str, detail: str, hint: str = "") -> dict[str, Any]:
    """The document; `retryable` says whether the same request may succeed later."""
    shown = {
        "type": TYPE_BASE + reason,
        "title": _TITLES.get(status, "Refused"),
        "status": status,
        "detail": detail,
        "reason": reason,
        "retryable": status in _RETRYABLE,
    }
    return {**shown, "hint": hint} if hint else shown


def response(error: RomancyError) -> web.Response:
    """The answer to a request that met this error."""
    status = status_of(error)
    answer = _answer(document(status, error.reason, error.message, error.hint))
    if isinstance(error, UnauthenticatedError):
        answer.headers["WWW-Authenticate"] = 'Bearer realm="romancy"'
    if isinstance(error, TooManyRequestsError):
        answer.headers["Retry-After"] = str(max(1, round(error.retry_after_seconds)))
    elif status == 503:
        answer.headers["Retry-After"] = str(RETRY_SECONDS)
    return answer


@web.middleware
async def middleware(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Turn every error into a problem document; one that nobody foresaw is logged, and told without its text."""
    try:
        return await handler(request)
    except RomancyError as error:
        return response(error)
    except web.HTTPRequestEntityTooLarge as error:
        return _answer(document(413, errors.PayloadTooLargeError.reason, error.text or "the body is too large"))
    except web.HTTPException as error:
        if error.status < 400:
            raise
        answer = _answer(document(error.status, errors.RequestInvalidError.reason, _of_aiohttp(request, error)))
        if isinstance(error, web.HTTPMethodNotAllowed):
            answer.headers["Allow"] = ", ".join(sorted(error.allowed_methods))
        return answer
    except ConnectionError:
        raise  # whoever asked is gone
    except Exception:
        LOG.exception("request_failed", method=request.method, path=request.path)
        return _answer(document(500, RomancyError.reason, "an error of the engine; its log says more"))


def _of_aiohttp(request: web.Request, error: web.HTTPException) -> str:
    if isinstance(error, web.HTTPMethodNotAllowed):
        return f"{request.method} is not done to {request.path}; allowed: {', '.join(sorted(error.allowed_methods))}"
    if error.status == 404:
        return f"there is nothing at {request.path}; /openapi.json lists what there is"
    return error.reason


def _answer(shown: dict[str, Any]) -> web.Response:
    return web.Response(status=shown["status"], text=json.dumps(shown), content_type=MEDIA_TYPE)
