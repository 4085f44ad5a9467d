# SPDX-License-Identifier: Apache-2.0
"""Cell mappings whose URLs are templates, which every reader of Nova's fills in for itself.

The names are Nova's. ``{scheme}``, ``{username}``, ``{password}``, ``{hostname}``,
``{port}``, ``{path}``, ``{query}`` and ``{fragment}`` are the parts of a URL of the
reader's own configuration, in its spelling; where that has several hosts,
``{username1}``, ``{password1}``, ``{hostname1}`` and ``{port1}`` are those of the first.
"""

import dataclasses
import re
import string
import urllib.parse
from collections.abc import Mapping, Set

from oslo_utils import netutils

from nova_precache import exception, model

_NAME = re.compile(
    'scheme|path|query|fragment|(username|password|hostname|port)([1-9][0-9]*)?', re.ASCII
)

Parts = Mapping[str, str | int | None]


@dataclasses.dataclass(frozen=True)
class Filling:
    """The URLs whose parts fill templates in."""

    transport_url: str | None = dataclasses.field(repr=False)
    database_connection: str | None = dataclasses.field(repr=False)

    def fill_cell(self, cell: model.Cell) -> model.Cell:
        """Give the cell with whole URLs, or without one and with the reason why."""
        transport_url, transport_problem = _try_to_fill(
            'transport_url', cell.transport_url, self.transport_url
        )
        database_connection, database_problem = _try_to_fill(
            'database_connection', cell.database_connection, self.database_connection
        )
        return dataclasses.replace(
            cell,
            transport_url=transport_url,
            transport_problem=transport_problem,
            database_connection=database_connection,
            database_problem=database_problem,
        )


def fill(template: str, url: str | None) -> str:
    """Fill a template in with the parts of a URL; what is no template stays as it is.

    :raises nova_precache.exception.InvalidInput: the URL has no such part; names it
    """
    names = _names(template)
    if not names:
        return template
    parts = _parts(url or '')
    missing = sorted(name for name in names if parts.get(name) is None)
    if missing:
        raise exception.InvalidInput(', '.join(f'{{{name}}}' for name in missing))
    return template.format_map(parts)


def _try_to_fill(column: str, template: str, url: str | None) -> tuple[str, str | None]:
    try:
        return fill(template, url), None
    except exception.InvalidInput as exc:
        return '', (
            f'its {column} is a template, and the URL that fills it in has no {exc}; '
            f'see [api_database] template_{column}'
        )


def _names(template: str) -> Set[str]:
    """Name the parts that are asked for; none where the braces are a literal URL's own."""
    try:
        pieces = [piece[1:] for piece in string.Formatter().parse(template)]
    except ValueError:
        return frozenset()
    asked = [piece for piece in pieces if piece[0] is not None]
    if any(specification or conversion for _, specification, conversion in asked):
        return frozenset()
    names = {str(name) for name, _, _ in asked}
    return names if all(map(_NAME.fullmatch, names)) else frozenset()


def _parts(url: str) -> Parts:
    scheme, slashes, rest = url.partition('//')
    netloc = re.split('[/?#]', rest, maxsplit=1)[0]
    try:
        split = urllib.parse.urlparse(scheme + slashes + _plain(netloc) + rest[len(netloc) :])
        return {
            'scheme': split.scheme or None,
            'path': split.path.lstrip('/'),
            'query': split.query,
            'fragment': split.fragment,
            'username': split.username,
            'password': split.password,
            'hostname': split.hostname,
            'port': _port(split),
            **_numbered(netloc),
        }
    except ValueError:  # no URL at all
        return {}


def _plain(netloc: str) -> str:
    """Give several hosts as one whose parts are those that Nova finds.

    Some Pythons refuse brackets, which an IPv6 address has, amid others.
    """
    login, at, addresses = netloc.rpartition('@')
    return re.sub(r'[][]', '', login) + at + addresses.partition(',')[0]


def _port(split: urllib.parse.ParseResult) -> int | None:
    try:
        return split.port
    except ValueError:  # of several hosts, which have numbers instead
        return None


def _numbered(netloc: str) -> Parts:
    hosts = netloc.split(',')
    if len(hosts) == 1:
        return {}
    parts: dict[str, str | int | None] = {}
    for number, host in enumerate(hosts, 1):
        user, at, address = host.partition('@')
        if not at:
            user, address = '', host
        username, colon, password = user.partition(':')
        hostname, port = netutils.parse_host_port(address)
        parts |= {
            f'username{number}': username,
            f'password{number}': password if colon else None,
            f'hostname{number}': hostname,
            f'port{number}': port,
        }
    return parts
