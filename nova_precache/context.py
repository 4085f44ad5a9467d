# SPDX-License-Identifier: Apache-2.0
"""The request context, from the API to Glance's log."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Self

from oslo_context import context

from nova_precache import exception, wire


class RequestContext(context.RequestContext):
    """An oslo.context request context that knows whether its user is an admin.

    ``auth_token`` stays in memory: :meth:`to_wire` omits it.

    :ivar is_of_any_project: the caller named no project, so the URL may name it
    """

    is_of_any_project = False

    def __init__(self, *, overwrite: bool = True, **kwargs: Any) -> None:
        """Build a context; with ``overwrite``, this thread logs under it from now on.

        oslo.context always stores the first context of a thread, even without ``overwrite``,
        so that all later log lines of a loop would carry the ids of its first request.
        """
        before = context.get_current()
        super().__init__(overwrite=overwrite, **kwargs)
        if not overwrite:
            _restore(before)

    def to_wire(self) -> dict[str, Any]:
        """Return the fields that may leave the process: ids and roles, no token."""
        return {
            'request_id': self.request_id,
            'global_request_id': self.global_request_id,
            'user_id': self.user_id,
            'project_id': self.project_id,
            'roles': list(self.roles),
            'is_admin': self.is_admin,
        }

    def redacted_copy(self, **kwargs: Any) -> Self:
        """Copy it without its token; this thread still logs under its own context."""
        return super().redacted_copy(overwrite=False, **kwargs)

    @classmethod
    def from_wire(cls, values: Mapping[str, Any]) -> 'RequestContext':
        """Read the caller of a message, for the log only; omit invalid fields, keep the others."""
        roles = values.get('roles')
        return cls(
            request_id=_known(values.get('request_id'), wire.REQUEST_ID_MAX),
            global_request_id=_known(values.get('global_request_id'), wire.REQUEST_ID_MAX),
            user_id=_known(values.get('user_id'), wire.USER_MAX),
            project_id=_known(values.get('project_id'), wire.USER_MAX),
            roles=[
                role
                for role in (roles[: wire.ROLES_MAX] if isinstance(roles, list) else ())
                if _known(role, wire.USER_MAX)
            ],
            is_admin=values.get('is_admin') is True,
            overwrite=False,
        )


def _known(value: object, most: int) -> str | None:
    try:
        return wire.text(value, '', most, 1)
    except exception.InvalidInput:
        return None


def admin_context() -> RequestContext:
    """Return the service's own identity, with the ids of the request this thread works for."""
    current = context.get_current()
    return RequestContext(
        is_admin=True,
        roles=['admin'],
        request_id=None if current is None else current.request_id,
        global_request_id=None if current is None else current.global_request_id,
        overwrite=False,
    )


@contextlib.contextmanager
def bind_request_id(request_id: str | None, global_request_id: str | None = None) -> Iterator[None]:
    """Use the ids of a request within, in the log and in calls of other services.

    :param request_id: None generates one
    :param global_request_id: the id of the original request, set by the calling service
    """
    before = context.get_current()
    RequestContext(
        is_admin=True,
        roles=['admin'],
        request_id=request_id,
        global_request_id=global_request_id,
    )
    try:
        yield
    finally:
        _restore(before)


def current_id() -> str | None:
    """Return the id under which other services shall log the requests of this thread."""
    current = context.get_current()
    return None if current is None else current.global_id


def _restore(before: context.RequestContext | None) -> None:
    # There is no public way to reset it to none.
    context._request_store.context = before
