"""Events that runs have emitted and no sink has taken, over HTTP: looked at, sent again, given up."""

from aiohttp import web

from romancy.base import log
from romancy.errors import DeadLetterNotFoundError, RequestInvalidError
from romancy.gateway.operations import Asked, answer
from romancy.gateway.schemas import DeadLetterQuery
from romancy.model.shown import dead_letters_as_json

LOG = log.get(__name__)
_ID_MAX = 2**63 - 1


async def list_dead_letters(asked: Asked) -> web.Response:
    """A page of them, newest first."""
    query: DeadLetterQuery = asked.query
    found = await asked.services.store.list_dead_letters(asked.namespace, limit=query.limit + 1, before=query.page)
    return answer(dead_letters_as_json(found, query.limit))


async def resend_dead_letter(asked: Asked) -> web.Response:
    """Have it delivered again, behind what its run has emitted since."""
    number = _number(asked)
    if not await asked.services.store.resend_dead_letter(number, namespace=asked.namespace):
        raise DeadLetterNotFoundError(number)
    LOG.info("dead_letter_changed_by_api", id=number, verb="resend", caller=asked.caller.name)
    return answer({"id": number}, status=202)


async def delete_dead_letter(asked: Asked) -> web.Response:
    """Give it up."""
    number = _number(asked)
    if not await asked.services.store.delete_dead_letter(number, namespace=asked.namespace):
        raise DeadLetterNotFoundError(number)
    LOG.info("dead_letter_changed_by_api", id=number, verb="delete", caller=asked.caller.name)
    return answer({"id": number})


def _number(asked: Asked) -> int:
    text = asked.request.match_info["id"]
    if not text.isascii() or not text.isdecimal() or len(text) > 19 or not 0 < int(text) <= _ID_MAX:
        raise RequestInvalidError(f"{text!r:.40} is no id of a dead letter", hint="a number, as the list gives it")
    return int(text)
