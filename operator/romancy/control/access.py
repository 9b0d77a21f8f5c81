"""The cluster as the authority of the HTTP API: a token is a TokenReview, a right a SubjectAccessReview."""

from collections.abc import Sequence
from typing import Any

from romancy.control.kube import KUBE_ERRORS, Json, Kube
from romancy.control.resources import GROUP
from romancy.errors import AuthorityUnavailableError
from romancy.model.access import Caller, Right

_TOKENS = "/apis/authentication.k8s.io/v1/tokenreviews"
_RIGHTS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"


class KubernetesAccess:
    """Asks the API server, with the right that `system:auth-delegator` gives.

    Args:
        audiences: a token must be made for one of these; none: for the API server itself.
    """

    def __init__(self, kube: Kube, audiences: Sequence[str] = ()) -> None:
        self._kube, self._audiences = kube, list(audiences)

    async def identify(self, token: str) -> Caller | None:
        """Whose token it is; None for a forged or expired one, and one that was made for somebody else.

        Raises:
            AuthorityUnavailableError: the cluster does not say.
        """
        spec: Json = {"token": token}
        if self._audiences:
            spec["audiences"] = self._audiences
        status = await self._ask(_TOKENS, "TokenReview", "authentication.k8s.io/v1", spec)
        if not status.get("authenticated"):
            return None
        if self._audiences and not set(self._audiences) & set(status.get("audiences") or ()):
            return None  # an authenticator that knows no audiences says yes to all
        user = status.get("user") or {}
        return Caller(
            name=user.get("username") or "",
            groups=tuple(user.get("groups") or ()),
            uid=user.get("uid") or "",
            extra={name: tuple(values) for name, values in (user.get("extra") or {}).items()},
        )

    async def may(self, caller: Caller, right: Right) -> bool:
        """Whether RBAC (or whatever the cluster uses) allows it.

        Raises:
            AuthorityUnavailableError: the cluster does not say.
        """
        resource, _, part = right.resource.partition("/")
        attributes = {
            "group": GROUP,
            "resource": resource,
            "subresource": part,
            "verb": right.verb,
            "namespace": right.namespace or "",
            "name": right.name,
        }
        spec: Json = {
            "user": caller.name,
            "groups": list(caller.groups),
            "uid": caller.uid,
            "extra": {name: list(values) for name, values in caller.extra.items()},
            "resourceAttributes": {name: value for name, value in attributes.items() if value},
        }
        status = await self._ask(_RIGHTS, "SubjectAccessReview", "authorization.k8s.io/v1", spec)
        return bool(status.get("allowed"))

    async def _ask(self, path: str, kind: str, version: str, spec: Json) -> Any:
        try:
            answer = await self._kube.call("POST", path, {"apiVersion": version, "kind": kind, "spec": spec})
        except KUBE_ERRORS as error:
            raise AuthorityUnavailableError(
                f"the cluster does not say who calls and what they may do: {error.message}",
                hint="the engine's service account needs the ClusterRole system:auth-delegator",
            ) from error
        return answer.get("status") or {}
