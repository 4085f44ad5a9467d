# SPDX-License-Identifier: Apache-2.0
"""Follow redirects without sending credentials to another origin.

An origin is a scheme, a host and a port. keystoneauth sends the token, and the password of a
login, to any redirect target; requests drops only ``Authorization``.
"""

import ipaddress
import re
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any

import requests
from keystoneauth1 import exceptions as ksa_exceptions

MAX_REDIRECTS = 10
STATUSES = frozenset({301, 302, 303, 307, 308})

# The only headers that are sent to another origin.
_HARMLESS_HEADERS = frozenset({'accept', 'accept-encoding', 'range', 'user-agent'})
_SAFE_METHODS = frozenset({'GET', 'HEAD'})
# From another origin these say nothing about the original service.
_REFUSALS = frozenset({401, 403, 404, 407, 410})
# Strict, so that no other parser reads a different host in it: no user, no escape in the host.
_URL = re.compile(
    r'(?P<scheme>https?)://(?P<host>\[[0-9a-f:.]{2,45}\]|[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*\.?)'
    r'(?::(?P<port>[0-9]{1,5}))?(?:[/?][^\x00-\x1f\x7f]*)?',
    re.ASCII | re.IGNORECASE,
)
_SCHEME = re.compile(r'[a-z][a-z0-9+.-]*:', re.ASCII | re.IGNORECASE)
_DEFAULT_PORTS = {'http': 80, 'https': 443}

Send = Callable[[str, bool], requests.Response]
"""Sends a request again: to which URL, and whether that is another origin."""


class RedirectFailed(ksa_exceptions.ClientException):
    """A redirect cannot be followed; the message has only origins, since URLs may be secret."""


def follow(answer: requests.Response, method: str, send: Send) -> requests.Response:
    """Follow the redirects of an answer, and return the final answer.

    After a redirect to another origin, no further request carries credentials: that origin
    must not choose where they are sent, not even back to the first.

    :raises RedirectFailed: with the reason
    """
    is_elsewhere = False
    for _ in range(MAX_REDIRECTS):
        if answer.status_code not in STATUSES:
            return answer
        answer.close()
        url = _target(answer)
        is_elsewhere = is_elsewhere or origin(url) != origin(answer.url)
        _check_method(answer.status_code, method, url, is_elsewhere)
        answer = send(url, is_elsewhere)
        if is_elsewhere and answer.status_code in _REFUSALS:
            answer.close()
            raise RedirectFailed(
                f'redirected to {origin(url)}, which answers HTTP {answer.status_code} '
                'without credentials'
            )
    if answer.status_code not in STATUSES:
        return answer
    answer.close()
    raise RedirectFailed(
        f'redirected more than {MAX_REDIRECTS} times, the last time by {origin(answer.url)}'
    )


def harmless(headers: Mapping[str | bytes, Any]) -> dict[str, Any]:
    """Return the headers that may be sent to another origin."""
    named = {
        name.decode('ascii') if isinstance(name, bytes) else name: value
        for name, value in headers.items()
    }
    return {name: value for name, value in named.items() if name.lower() in _HARMLESS_HEADERS}


def origin(url: str) -> str:
    """Return the origin of a URL as one string.

    :raises RedirectFailed: it has none, or is no plain http or https URL
    """
    match = _URL.fullmatch(url)
    if match is None:
        raise RedirectFailed('redirected to a URL that is not plain http or https')
    scheme, host = match['scheme'].lower(), match['host'].lower()
    if host.startswith('['):
        try:
            ipaddress.IPv6Address(host[1:-1])
        except ValueError as exc:
            raise RedirectFailed('redirected to an invalid IPv6 address') from exc
    port = int(match['port'] or _DEFAULT_PORTS[scheme])
    if not 0 < port < 2**16:
        raise RedirectFailed('redirected to a port that is not from 1 to 65535')
    return f'{scheme}://{host}:{port}'


def _target(answer: requests.Response) -> str:
    """Return the target URL of a redirect, whose Location may be relative."""
    location = answer.headers.get('Location')
    if not location:
        raise RedirectFailed(f'HTTP {answer.status_code} without a Location')
    try:
        # http.client always decodes headers as Latin-1.
        url = location.encode('latin-1').decode()
        if not _SCHEME.match(url):  # urljoin takes some odd URLs with a scheme as relative
            url = urllib.parse.urljoin(answer.url, url)
        url = urllib.parse.urldefrag(url).url
    except ValueError as exc:
        raise RedirectFailed('redirected to an invalid URL') from exc
    if origin(url).startswith('http:') and origin(answer.url).startswith('https:'):
        raise RedirectFailed(f'redirected from https to {origin(url)}')
    return url


def _check_method(status: int, method: str, url: str, is_elsewhere: bool) -> None:
    """Refuse to send a body, such as a login, to another origin, or to turn it into a GET."""
    if method.upper() in _SAFE_METHODS:
        return
    if is_elsewhere:
        raise RedirectFailed(f'{method} is redirected to {origin(url)}')
    if status == requests.codes.see_other:
        raise RedirectFailed(f'{method} is answered HTTP {status}')
