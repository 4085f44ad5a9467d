# SPDX-License-Identifier: Apache-2.0
"""Normalise the URL of an image service, to compare it and to connect to it.

A URL from a message is used only in this form, so that no other parser reads a different host
in it.
"""

import ipaddress
import re

from nova_precache import exception, wire

# No user, query, fragment, escape or character beyond ASCII.
_URL = re.compile(
    r'(?P<scheme>https?)://'
    r'(?:\[(?P<address>[0-9a-f:.]{2,45})\]|(?P<name>[a-z0-9](?:[a-z0-9._-]{0,252}[a-z0-9])?))'
    r'(?::(?P<port>[0-9]{0,5}))?'
    r'(?P<path>(?:/[a-z0-9._~-]+)*)/*',
    re.ASCII | re.IGNORECASE,
)
_DEFAULT_PORTS = {'http': 80, 'https': 443}
_VERSION_SUFFIX = re.compile(r'/v\d+(\.\d+)?/*\Z')


def without_version(url: str) -> str:
    """Return the URL without the version of the API."""
    return _VERSION_SUFFIX.sub('', url).rstrip('/')


def normalise(url: object) -> str:
    """Return the normal form of an endpoint, without the version of the API.

    :raises nova_precache.exception.InvalidInput: no plain http or https URL; the message omits
        it, since it may contain a password
    """
    if not isinstance(url, str) or len(url) > wire.ENDPOINT_MAX:
        raise exception.InvalidInput(f'not a URL of at most {wire.ENDPOINT_MAX} characters')
    match = _URL.fullmatch(url)
    if match is None or {'.', '..'}.intersection(match['path'].split('/')):
        raise exception.InvalidInput('not a plain http or https URL of a host')
    scheme = match['scheme'].lower()
    port = int(match['port'] or _DEFAULT_PORTS[scheme])
    if not 0 < port < 2**16:
        raise exception.InvalidInput('its port is not from 1 to 65535')
    shown_port = '' if port == _DEFAULT_PORTS[scheme] else f':{port}'
    return without_version(f'{scheme}://{_host(match)}{shown_port}{match["path"]}')


def _host(match: re.Match[str]) -> str:
    if match['name'] is not None:
        return match['name'].lower()
    try:
        return f'[{ipaddress.IPv6Address(match["address"])}]'
    except ValueError as exc:
        raise exception.InvalidInput('its IPv6 address is invalid') from exc
