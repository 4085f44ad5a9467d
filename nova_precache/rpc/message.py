# SPDX-License-Identifier: Apache-2.0
"""What each message carries beside its arguments: the request's context, and a version."""

import re
from typing import Any

import oslo_messaging as messaging

from nova_precache import context, exception

AUTO = 'auto'
_VERSION = r'[0-9]{1,5}\.[0-9]{1,5}'


class ContextSerializer(messaging.NoOpSerializer):  # type: ignore[misc]
    """Carries the request context without its token."""

    def serialize_context(self, ctxt: context.RequestContext) -> dict[str, Any]:
        return ctxt.to_wire()

    def deserialize_context(self, ctxt: dict[str, Any]) -> context.RequestContext:
        """Build the context of a call, under which the serving thread logs."""
        arrived = context.RequestContext.from_wire(ctxt)
        arrived.update_store()
        return arrived


class NovaContextSerializer(ContextSerializer):
    """Sends Nova the fields it needs: it calls the image service with the caller's token."""

    def serialize_context(self, ctxt: context.RequestContext) -> dict[str, Any]:
        return {
            'request_id': ctxt.request_id,
            'global_request_id': ctxt.global_request_id,
            'is_admin': ctxt.is_admin,
            'auth_token': ctxt.auth_token,
        }


def version_cap(option: str, pin: str | None, newest: str, oldest: str = '0.0') -> str | None:
    """Read a pin in ``[upgrade_levels]``: the highest version to send, None for any.

    :param newest: the version of this release
    :param oldest: the lowest version that works
    :raises nova_precache.exception.ConfigError: the pin is no version, or out of range
    """
    if not pin or pin == AUTO:
        return None
    shown = f'[upgrade_levels] {option} = {pin}'
    if not re.fullmatch(_VERSION, pin):
        raise exception.ConfigError(f'{shown} is neither {AUTO} nor a version such as {newest}')
    if parse_version(pin) < parse_version(oldest):
        raise exception.ConfigError(f'{shown} is too low, the oldest version is {oldest}')
    if parse_version(pin)[0] > parse_version(newest)[0]:
        raise exception.ConfigError(f'{shown} is not known, the newest version is {newest}')
    return pin


def knows(answer: object, version: str) -> bool:
    """Return whether a service that answered ``ping`` serves this minor version."""
    if not isinstance(answer, str) or not re.fullmatch(_VERSION, answer):
        return False  # of the first release, which answers nothing
    served, asked = parse_version(answer), parse_version(version)
    return served[0] == asked[0] and served[1] >= asked[1]


def parse_version(text: str) -> tuple[int, int]:
    """Split a version, such as 1.4, into its major and minor number."""
    major, minor = text.split('.')
    return int(major), int(minor)
