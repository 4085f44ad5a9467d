# SPDX-License-Identifier: Apache-2.0
"""HTTP client of the service under /v1: paths, pages and errors."""

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
MOST_CHARACTERS = 300
_PASSING = frozenset({429, 500, 502, 503, 504})


class ApiError(Exception):
    """The service refused a request; the message is its own."""


class ApiUnavailable(ApiError):
    """The service does not answer, or is temporarily unavailable."""


class ApiClient:
    """The service's API for commands; paths are below /v1.

    :ivar names: what the command calls the fields of the API, for errors
    """

    def __init__(self, endpoint: adapter.Adapter) -> None:
        self._endpoint = endpoint
        self._polled: dict[str, tuple[str, Json]] = {}
        self.names: Mapping[str, str] = {}

    def get(self, *path: str, query: Query | None = None) -> Json:
        """Get the document at a path.

        :raises ApiError: the service refused
        """
        return self._json('GET', path, params=_given(query))

    def poll(self, *path: str, query: Query | None = None) -> Json:
        """Get a document again and again; the service sends only one that has changed.

        :raises ApiError: the service refused
        """
        place = f'{"/".join(path)}?{urllib.parse.urlencode(_given(query))}'
        etag, known = self._polled.get(place, (None, None))
        headers = {} if etag is None else {'If-None-Match': etag}
        answer = self._send('GET', path, params=_given(query), headers=headers)
        if known is not None and answer.status_code == requests.codes.not_modified:
            return known
        document = _document(answer)
        if 'ETag' in answer.headers:
            self._polled[place] = answer.headers['ETag'], document
        return document

    def post(self, *path: str, body: Json, query: Query | None = None) -> Json:
        return self._json('POST', path, params=_given(query), json=body)

    def patch(self, *path: str, body: Json) -> Json:
        return self._json('PATCH', path, json=body)

    def delete(self, *path: str) -> None:
        self._send('DELETE', path)

    def delete_and_read(self, *path: str) -> Json:
        """Delete what is at a path, and return the answer, which describes the result."""
        return self._json('DELETE', path)

    def pages(
        self,
        *path: str,
        collection: str,
        query: Query | None = None,
        limit: int | None = None,
        polls: bool = False,
    ) -> Iterator[Json]:
        """Yield the items of a list; fetch each page when it is needed.

        :param collection: the key of the list in each answer
        :param limit: total number of items
        :param polls: get pages that have changed, as ``poll``
        """
        asked = dict(query or {})
        get = self.poll if polls else self.get
        while True:
            page = get(*path, query={**asked, 'limit': limit})
            items = page[collection]
            yield from items if limit is None else items[:limit]
            if limit is not None and (limit := limit - len(items)) <= 0:
                return
            if (marker := next_marker(page, collection)) is None:
                return
            asked['marker'] = marker

    def _json(self, method: str, path: tuple[str, ...], **arguments: Any) -> Json:
        return _document(self._send(method, path, **arguments))

    def _send(self, method: str, path: tuple[str, ...], **arguments: Any) -> requests.Response:
        if not all(path):
            raise ApiError('An ID or a name in the command is empty')
        url = ''.join(f'/{urllib.parse.quote(part, safe="")}' for part in path)

        def send_on(to: str, is_elsewhere: bool) -> requests.Response:
            if is_elsewhere:
                raise redirects.RedirectFailed(
                    f'The image pre-caching service redirects to {redirects.origin(to)}, '
                    'which gets no token: correct the endpoint'
                )
            return self._ask(to, method, **{**arguments, 'params': None})

        try:
            answer = redirects.follow(self._ask(url, method, **arguments), method, send_on)
        except redirects.RedirectFailed as error:
            raise ApiError(str(error)) from error
        except keystone.SSLError as error:
            raise ApiError(str(error)) from error
        except (keystone.ConnectionError, keystone.HttpServerError) as error:
            # The text after the colon is an internal of the HTTP library.
            raise ApiUnavailable(str(error).split(': ')[0]) from error
        if answer.status_code in _PASSING:
            raise ApiUnavailable(self._message(answer))
        is_known = answer.status_code == requests.codes.not_modified and arguments.get('headers')
        # A server that offers a choice of versions lacks the requested one.
        if answer.status_code >= requests.codes.multiple_choices and not is_known:
            raise ApiError(self._message(answer))
        return answer

    def _message(self, answer: requests.Response) -> str:
        """Extract the message of an error; never print a proxy's error page."""
        try:
            (fault,) = answer.json().values()
            name = self.names.get(fault.get('field'))
            said = str(fault['message']) if name is None else f'{name}: {fault["detail"]}'
        except (ValueError, AttributeError, TypeError, KeyError):
            return f'The image pre-caching service answered {answer.status_code} {answer.reason}'
        return shorten(said)

    def _ask(
        self, url: str, method: str, headers: Mapping[str, str] | None = None, **arguments: Any
    ) -> requests.Response:
        answer: requests.Response = self._endpoint.request(
            url,
            method,
            raise_exc=False,
            redirect=False,
            timeout=TIMEOUT_SECONDS,
            headers={'Accept': 'application/json', **(headers or {})},
            **arguments,
        )
        return answer


def _document(answer: requests.Response) -> Json:
    try:
        return dict(answer.json())
    except (ValueError, TypeError):
        raise ApiError(f'No image pre-caching service found at {answer.url}') from None


def of(app: Any) -> ApiClient:
    """Return the client of a running ``openstack``; the plugin creates it on first use."""
    client: ApiClient = app.client_manager.image_precache
    return client


def next_marker(page: Json, collection: str) -> str | None:
    """Return the marker of the next page; the host in the link may be unreachable from here."""
    for link in page.get(f'{collection}_links', ()):
        if link['rel'] == 'next':
            query = urllib.parse.urlsplit(link['href']).query
            return str(urllib.parse.parse_qs(query)['marker'][0])
    return None


def _given(query: Query | None) -> Json:
    return {key: value for key, value in (query or {}).items() if value is not None}


def shorten(text: str) -> str:
    """Return a text on one line that fits a terminal; what is cut is marked."""
    line = ' '.join(text.split())
    return line if len(line) <= MOST_CHARACTERS else f'{line[:MOST_CHARACTERS]}…'
