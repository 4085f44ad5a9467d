# SPDX-License-Identifier: Apache-2.0
"""Refuse requests of a browser for pages of other sites, where every caller is an admin.

The loopback is the only protection of an API with ``noauth2``, and of standalone's Glance, but a
page in any browser on this machine can call it. A page of another site can send a POST that needs
no preflight; one whose owner points its name to the loopback (DNS rebinding) can also read the
answers. A browser puts the page into ``Origin`` and the called server into ``Host``, and no page
can change them.

Only the standard library is imported: Glance loads this file into its own environment.
"""

import dataclasses
import ipaddress
import json
import logging
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Self

LOG = logging.getLogger(__name__)

Application = Callable[..., Iterable[bytes]]

ANY_ORIGIN = '*'

_AUTHORITY = r'(\[[0-9A-Fa-f:.]+\]|[^][:/?#@,\s]+)(?::(\d{1,5}))?'
_HOST = re.compile(_AUTHORITY)
_ORIGIN = re.compile(rf'(https?)://{_AUTHORITY}', re.IGNORECASE)
_BASE_URL = re.compile(rf'(https?)://{_AUTHORITY}(?:/.*)?', re.IGNORECASE)
_PORTS = {'http': 80, 'https': 443}
_SHOWN_CHARACTERS = 100


@dataclasses.dataclass(frozen=True)
class Origin:
    """The origin of a page or an API; the host is in lower case and without brackets."""

    scheme: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str, form: re.Pattern[str] = _ORIGIN) -> Self | None:
        """Parse one origin; None: it is not one, or several."""
        found = form.fullmatch(text)
        if found is None:
            return None
        scheme = found[1].lower()
        return cls(scheme, _bare(found[2]), int(found[3] or _PORTS[scheme]))


class OriginGuard:
    """Admits programs and pages of this machine, and configured origins.

    :param allowed_origins: other origins of pages, as a browser writes them, or ``*``
    :param public_endpoint: a URL of the server; its host is accepted in ``Host``, its origin
        in ``Origin``
    :param allowed: ends the message of a refusal: how to allow more
    """

    def __init__(
        self,
        application: Application,
        allowed_origins: Collection[str] = (),
        public_endpoint: str | None = None,
        allowed: str = '',
    ) -> None:
        self._application = application
        self._allowed_origins = frozenset(allowed_origins)
        self._allowed = allowed
        self._public = Origin.parse(public_endpoint or '', _BASE_URL)

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        refused = self._refused_header(environ)
        if refused is None:
            return self._application(environ, start_response)
        value = str(environ[f'HTTP_{refused.upper().replace("-", "_")}'])[:_SHOWN_CHARACTERS]
        message = (
            f'{refused} {value!r} is refused: every caller is an admin here, so it must name '
            f'this machine{self._allowed}'
        )
        path = environ.get('PATH_INFO', '')[:_SHOWN_CHARACTERS]
        LOG.warning('%s %r: %s', environ['REQUEST_METHOD'], path, message)
        body = json.dumps({'forbidden': {'code': 403, 'message': message}}).encode()
        headers = [
            ('Content-Type', 'application/json; charset=UTF-8'),
            ('Content-Length', str(len(body))),
        ]
        start_response('403 Forbidden', headers)
        return [] if environ['REQUEST_METHOD'] == 'HEAD' else [body]

    def _refused_header(self, environ: Mapping[str, Any]) -> str | None:
        """Return the name of the header that marks the request as foreign, if any."""
        host, origin = environ.get('HTTP_HOST'), environ.get('HTTP_ORIGIN')
        # HTTP/1.0 needs no Host, and browsers do not speak it.
        if host is not None and not self._is_own_host(host):
            return 'Host'
        if origin is not None:
            return None if self._is_allowed_origin(origin) else 'Origin'
        # A browser sends no Origin for, say, an image or a link in a page of another site.
        is_cross_site = 'cross-site' in str(environ.get('HTTP_SEC_FETCH_SITE', '')).lower()
        return 'Sec-Fetch-Site' if is_cross_site else None

    def _is_own_host(self, text: str) -> bool:
        found = _HOST.fullmatch(text)
        if found is None:
            return False
        host = _bare(found[1])
        return is_loopback(host) or (self._public is not None and host == self._public.host)

    def _is_allowed_origin(self, text: str) -> bool:
        if not self._allowed_origins.isdisjoint({ANY_ORIGIN, text}):
            return True
        origin = Origin.parse(text)
        return origin is not None and (is_loopback(origin.host) or origin == self._public)


def is_loopback(host: str) -> bool:
    """Return whether a name, or an address without brackets, is this machine and no other."""
    if host == 'localhost':
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _bare(host: str) -> str:
    return host.strip('[]').lower()
