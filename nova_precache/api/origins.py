# SPDX-License-Identifier: Apache-2.0
"""Refuses what a browser sends for a page of another site, where every caller is an admin.

With ``noauth2`` the loopback is the only fence, and every page in a browser of this machine is
within it. A page of another site can send a POST that needs no preflight; one whose name its
owner points to the loopback (DNS rebinding) can also read the answers. A browser names the page
in ``Origin`` and the address that it believes to call in ``Host``: no page can change them.
"""

import dataclasses
import logging
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, Self

import webob

from nova_precache import exception
from nova_precache.api import auth, faults

LOG = logging.getLogger(__name__)

Application = Callable[..., Any]

ANY_ORIGIN = '*'

_AUTHORITY = r'(\[[0-9A-Fa-f:.]+\]|[^][:/?#@,\s]+)(?::(\d{1,5}))?'
_HOST = re.compile(_AUTHORITY)
_ORIGIN = re.compile(rf'(https?)://{_AUTHORITY}', re.IGNORECASE)
_BASE_URL = re.compile(rf'(https?)://{_AUTHORITY}(?:/.*)?', re.IGNORECASE)
_PORTS = {'http': 80, 'https': 443}
_SHOWN_CHARACTERS = 100


class ForeignCaller(exception.Forbidden):
    """A page of another site asks, or the API was called by a name that is not its own."""

    def __init__(self, header: str, value: str, remedy: str) -> None:
        super().__init__(
            f'{header} {value[:_SHOWN_CHARACTERS]!r} is refused: with [api] auth_strategy = '
            f'noauth2 the API is for this machine alone, and for {remedy}'
        )


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a page, or an API, is from; the host is in lower case and without brackets."""

    scheme: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str, form: re.Pattern[str] = _ORIGIN) -> Self | None:
        """Read one origin; None: it is not one, or several."""
        found = form.fullmatch(text)
        if found is None:
            return None
        scheme = found[1].lower()
        return cls(scheme, _bare(found[2]), int(found[3] or _PORTS[scheme]))


class OriginGuard:
    """Lets programs and pages of this machine pass, and what the options name.

    :param allowed_origins: of ``[cors] allowed_origin``, as they are written there
    :param public_endpoint: of ``[api]``; its host is another name of the API, its origin one
        of the API's own pages
    """

    def __init__(
        self,
        application: Application,
        allowed_origins: Collection[str] = (),
        public_endpoint: str | None = None,
    ) -> None:
        self._application = application
        self._allowed_origins = frozenset(allowed_origins)
        self._public = Origin.parse(public_endpoint or '', _BASE_URL)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        try:
            self._check(environ)
        except ForeignCaller as refusal:
            method, path = environ['REQUEST_METHOD'], environ.get('PATH_INFO', '')
            LOG.warning('%s %r: %s', method, path[:_SHOWN_CHARACTERS], refusal)
            answer = faults.answer(refusal, webob.Request(environ))
            return answer(environ, start_response)
        return self._application(environ, start_response)

    def _check(self, environ: Mapping[str, Any]) -> None:
        host, origin = environ.get('HTTP_HOST'), environ.get('HTTP_ORIGIN')
        # HTTP/1.0 needs no Host, and browsers do not speak it.
        if host is not None and not self._is_own_host(host):
            raise ForeignCaller('Host', host, 'the host of [api] public_endpoint')
        if origin is not None and not self._is_allowed_origin(origin):
            raise ForeignCaller('Origin', origin, 'pages that [cors] allowed_origin names')
        site = str(environ.get('HTTP_SEC_FETCH_SITE', ''))
        if origin is None and 'cross-site' in site.lower():
            # Such as an image or a link in a page of another site, for which there is no Origin.
            raise ForeignCaller('Sec-Fetch-Site', site, 'pages that [cors] allowed_origin names')

    def _is_own_host(self, text: str) -> bool:
        found = _HOST.fullmatch(text)
        if found is None:
            return False
        host = _bare(found[1])
        return auth.is_loopback(host) or (self._public is not None and host == self._public.host)

    def _is_allowed_origin(self, text: str) -> bool:
        if not self._allowed_origins.isdisjoint({ANY_ORIGIN, text}):
            return True
        origin = Origin.parse(text)
        return origin is not None and (auth.is_loopback(origin.host) or origin == self._public)


def _bare(host: str) -> str:
    return host.strip('[]').lower()
