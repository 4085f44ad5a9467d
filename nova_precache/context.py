# SPDX-License-Identifier: Apache-2.0
"""Who asks: the request context, from the API to Glance's log."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Self

from oslo_context import context

from nova_precache import exception, wire


class RequestContext(context.RequestContext):
    """An oslo.context request context that knows whether its user is an admin.

    ``auth_token`` lives in memory only: :meth:`to_wire` leaves it out.

    :ivar is_of_any_project: nobody said which, so the URL may say it
    """

    is_of_any_project = False

    def __init__(self, *, overwrite: bool = True, **kwargs: Any) -> None:
        """Make a context; with ``overwrite``, this thread logs under it from now on.

        oslo.context would keep the first one of a thread in any case, so that all later
        lines of a loop would carry the ids of the request that it served first.
        """
        before = context.get_current()
        super().__init__(overwrite=overwrite, **kwargs)
        if not overwrite:
            _restore(before)

    def to_wire(self) -> dict[str, Any]:
        """Give what may leave the process: ids and roles, no token."""
        return {
            'request_id': self.request_id,
            'global_request_id': self.global_request_id,
            'user_id': self.user_id,
            'project_id': self.project_id,
            'roles': list(self.roles),
            'is_admin': self.is_admin,
        }

    def redacted_copy(self, **kwargs: Any) -> Self:
        """Copy it without its token; this thread's log goes on under its own context."""
        return super().redacted_copy(overwrite=False, **kwargs)

    @classmethod
    def from_wire(cls, values: Mapping[str, Any]) -> 'RequestContext':
        """Read who asks, for the log alone: what cannot be so is left out, and hides nothing."""
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
    """The service's own identity, with the ids of the request that this thread works for."""
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
    """Log, and ask others, under the ids of a request until this is left.

    :param request_id: None makes one up
    :param global_request_id: of the request that the caller of this one was serving
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
    """Give the id under which others are to log what this thread asks of them."""
    current = context.get_current()
    return None if current is None else current.global_id


def _restore(before: context.RequestContext | None) -> None:
    # There is no public way to have none again.
    context._request_store.context = before
