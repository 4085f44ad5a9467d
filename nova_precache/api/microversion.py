# SPDX-License-Identifier: Apache-2.0
"""Negotiates microversions: reads them from a request, and names them in the answer."""

import dataclasses
import re
from collections.abc import Mapping, MutableMapping
from typing import Any

import microversion_parse
from microversion_parse import Version

from nova_precache import exception, shown

HEADER = 'OpenStack-API-Version'
ENVIRON = 'nova_precache.microversion'

# Python converts no number of more than 4300 digits.
_FORMAT = re.compile(r'([1-9]\d{0,999})\.([1-9]\d{0,999}|0)')


class InvalidVersion(exception.InvalidInput):
    """The header does not contain a version."""

    def __init__(self, text: str) -> None:
        super().__init__(
            f'API Version String {text} is of invalid format. Must be of format MajorNum.MinorNum.'
        )


class UnsupportedVersion(exception.PrecacheError):
    """The version is outside the range that this release serves."""

    def __init__(self, version: Version, api: 'Api') -> None:
        super().__init__(
            f'Version {version} is not supported by the API. '
            f'Minimum is {api.minimum} and maximum is {api.maximum}.'
        )


@dataclasses.dataclass(frozen=True)
class Api:
    """One of the two APIs, with the range of its versions."""

    prefix: str
    service_type: str
    minimum: Version
    maximum: Version
    legacy_header: str | None = None


COMPUTE = Api(
    prefix='/v2.1',
    service_type='compute',
    minimum=Version(2, 1),
    maximum=Version(2, 81),
    legacy_header='X-OpenStack-Nova-API-Version',
)
PRECACHE = Api(
    prefix='/v1',
    service_type='image-precache',
    minimum=Version(1, 0),
    maximum=Version(1, 0),
)
# The list of APIs; it has no versions.
ROOT = Api(prefix='', service_type='', minimum=Version(0, 0), maximum=Version(0, 0))


def api_for_path(path: str) -> Api:
    """Return the API that a path belongs to, :data:`ROOT` if none."""
    for api in (COMPUTE, PRECACHE):
        if path == api.prefix or path.startswith(f'{api.prefix}/'):
            return api
    return ROOT


def negotiate(environ: dict[str, Any], headers: MutableMapping[str, str], api: Api) -> Version:
    """Return the version to answer in, and record it for :func:`announce`; the root has none.

    An unsupported version is recorded, too: its refusal names it.

    :raises InvalidVersion: the header does not contain a version
    :raises UnsupportedVersion: too old or too new
    """
    if api is ROOT:
        return api.minimum
    legacy_headers = [api.legacy_header] if api.legacy_header is not None else []
    asked = microversion_parse.get_version(headers, api.service_type, legacy_headers)
    version = _parse(asked, api)
    environ[ENVIRON] = (api, version)
    if not version.matches(api.minimum, api.maximum):
        raise UnsupportedVersion(version, api)
    return version


def announce(environ: Mapping[str, Any], headers: Any) -> None:
    """Add the negotiated version, if any, to the headers of an answer."""
    if ENVIRON not in environ:
        return
    api, version = environ[ENVIRON]
    headers[HEADER] = f'{api.service_type} {version}'
    headers.add('Vary', HEADER)
    if api.legacy_header is not None:
        headers[api.legacy_header] = str(version)
        headers.add('Vary', api.legacy_header)


def _parse(asked: str | None, api: Api) -> Version:
    if asked is None:
        return api.minimum
    if asked == 'latest':
        return api.maximum
    match = _FORMAT.fullmatch(asked)
    if match is None:
        # Nova's message shows an input of any length.
        raise InvalidVersion(shown.value(asked) if api is PRECACHE else asked)
    return Version(int(match[1]), int(match[2]))
