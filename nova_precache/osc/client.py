# SPDX-License-Identifier: Apache-2.0
"""Asks the service under /v1: paths, pages, and what it says when it refuses."""

import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

import requests
from keystoneauth1 import adapter, exceptions as keystone

from nova_precache import redirects

Json = dict[str, Any]
Query = Mapping[str, str | int | None]

SERVICE_TYPE = 'image-precache'
TIMEOUT_SECONDS = 60
_PASSING = frozenset({429, 500, 502, 503, 504})


class ApiError(Exception):
    """The service refused; says why in its own words."""


class Unavailable(ApiError):
    """The service does not answer, or not now: it may in a moment."""


class Client:
    """The service as commands see it; paths are below /v1."""

    def __init__(self, endpoint: adapter.Adapter) -> None:
        self._endpoint = endpoint

    def get(self, *path: str, query: Query | None = None) -> Json:
        """Read what is at a path.

        :raises ApiError: it was refused
        """
        return self._json('GET', path, params=_given(query))

    def post(self, *path: str, body: Json, query: Query | None = None) -> Json:
        return self._json('POST', path, params=_given(query), json=body)

    def delete(self, *path: str) -> None:
        self._send('DELETE', path)

    def pages(
        self, *path: str, collection: str, query: Query | None = None, limit: int | None = None
    ) -> Iterator[Json]:
        """Give the items of a list, page by page as they are used.

        :param collection: the key of the list in each answer
        :param limit: number of items in all
        """
        asked = dict(query or {})
        while True:
            page = self.get(*path, query={**asked, 'limit': limit})
            items = page[collection]
            yield from items if limit is None else items[:limit]
            if limit is not None and (limit := limit - len(items)) <= 0:
                return
            if (marker := next_marker(page, collection)) is None:
                return
            asked['marker'] = marker

    def _json(self, method: str, path: tuple[str, ...], **arguments: Any) -> Json:
        answer = self._send(method, path, **arguments)
        try:
            return dict(answer.json())
        except (ValueError, TypeError):
            raise ApiError(f'At {answer.url} is no image pre-caching service') from None

    def _send(self, method: str, path: tuple[str, ...], **arguments: Any) -> requests.Response:
        url = ''.join(f'/{urllib.parse.quote(part, safe="")}' for part in path)

        def send_on(to: str, is_elsewhere: bool) -> requests.Response:
            if is_elsewhere:
                raise redirects.RedirectFailed(
                    f'The image pre-caching service is redirected to {redirects.origin(to)}, '
                    'where no token is sent: correct its endpoint'
                )
            return self._ask(to, method, **{**arguments, 'params': None})

        try:
            answer = redirects.follow(self._ask(url, method, **arguments), method, send_on)
        except redirects.RedirectFailed as error:
            raise ApiError(str(error)) from error
        except keystone.SSLError as error:
            raise ApiError(str(error)) from error
        except (keystone.ConnectionError, keystone.HttpServerError) as error:
            # What follows the colon are the insides of the HTTP library.
            raise Unavailable(str(error).split(': ')[0]) from error
        if answer.status_code in _PASSING:
            raise Unavailable(_message(answer))
        # Whoever offers a choice of versions was asked for one that is not there.
        if answer.status_code >= requests.codes.multiple_choices:
            raise ApiError(_message(answer))
        return answer

    def _ask(self, url: str, method: str, **arguments: Any) -> requests.Response:
        answer: requests.Response = self._endpoint.request(
            url,
            method,
            raise_exc=False,
            redirect=False,
            timeout=TIMEOUT_SECONDS,
            headers={'Accept': 'application/json'},
            **arguments,
        )
        return answer


def of(app: Any) -> Client:
    """Give the client of a running ``openstack``, which the plugin makes when it is used."""
    client: Client = app.client_manager.image_precache
    return client


def next_marker(page: Json, collection: str) -> str | None:
    """Find where the next page begins; the host in the link may not be ours to reach."""
    for link in page.get(f'{collection}_links', ()):
        if link['rel'] == 'next':
            query = urllib.parse.urlsplit(link['href']).query
            return str(urllib.parse.parse_qs(query)['marker'][0])
    return None


def _given(query: Query | None) -> Json:
    return {key: value for key, value in (query or {}).items() if value is not None}


def _message(answer: requests.Response) -> str:
    """Take the sentence out of an error; a proxy's page is not for a terminal."""
    try:
        (fault,) = answer.json().values()
        return str(fault['message'])
    except (ValueError, AttributeError, TypeError, KeyError):
        return f'The image pre-caching service answered {answer.status_code} {answer.reason}'
