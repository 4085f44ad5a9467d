# SPDX-License-Identifier: Apache-2.0
"""Fills in the URLs of cell mappings that are templates, as every reader of Nova's mappings must.

The names are Nova's. ``{scheme}``, ``{username}``, ``{password}``, ``{hostname}``,
``{port}``, ``{path}``, ``{query}`` and ``{fragment}`` are the parts of a URL in the reader's
own configuration, spelled as there; if that URL has several hosts, ``{username1}``,
``{password1}``, ``{hostname1}`` and ``{port1}`` are those of the first.
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
    """The URLs whose parts fill in templates."""

    transport_url: str | None = dataclasses.field(repr=False)
    database_connection: str | None = dataclasses.field(repr=False)

    def fill_cell(self, cell: model.Cell) -> model.Cell:
        """Return the cell with filled-in URLs; a URL that cannot be is replaced by the reason."""
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
    """Fill in a template with the parts of a URL; other text is returned unchanged.

    :raises nova_precache.exception.InvalidInput: the URL lacks parts, which it names
    """
    fields = names(template)
    if not fields:
        return template
    parts = _parts(url or '')
    missing = sorted(name for name in fields if parts.get(name) is None)
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


def names(template: str) -> Set[str]:
    """Return the names in a template; none if the braces belong to a literal URL."""
    try:
        pieces = [piece[1:] for piece in string.Formatter().parse(template)]
    except ValueError:
        return frozenset()
    asked = [piece for piece in pieces if piece[0] is not None]
    if any(specification or conversion for _, specification, conversion in asked):
        return frozenset()
    found = {str(name) for name, _, _ in asked}
    return found if all(map(_NAME.fullmatch, found)) else frozenset()


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
    except ValueError:  # not a URL
        return {}


def _plain(netloc: str) -> str:
    """Reduce several hosts to one with the parts that Nova finds.

    Some versions of Python refuse the brackets of an IPv6 address among other hosts.
    """
    login, at, addresses = netloc.rpartition('@')
    return re.sub(r'[][]', '', login) + at + addresses.partition(',')[0]


def _port(split: urllib.parse.ParseResult) -> int | None:
    try:
        return split.port
    except ValueError:  # several hosts, whose ports are numbered instead
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
