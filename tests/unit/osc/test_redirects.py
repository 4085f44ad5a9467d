# SPDX-License-Identifier: Apache-2.0
"""Behaviour of a command when the service redirects it."""

from collections.abc import Iterator

import pytest
from keystoneauth1 import adapter, session, token_endpoint

from nova_precache.osc import client
from tests.scripted_server import Answer, Server, serving


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as script:
        yield script


@pytest.fixture
def elsewhere() -> Iterator[Server]:
    with serving() as script:
        yield script


@pytest.fixture
def service(server: Server) -> client.ApiClient:
    opened = session.Session(auth=token_endpoint.Token(server.url, 'secret-token'))
    return client.ApiClient(adapter.Adapter(opened, endpoint_override=f'{server.url}/v1'))


@pytest.mark.parametrize('status', [301, 302, 303, 307, 308])
def test_token_not_sent_to_other_host(
    server: Server, elsewhere: Server, service: client.ApiClient, status: int
) -> None:
    moved = Answer(status, headers={'Location': f'{elsewhere.url}/v1/requests?key=private'})
    server.answers = [moved, moved]
    for ask in (lambda: service.get('requests'), lambda: service.post('requests', body={'a': 1})):
        with pytest.raises(client.ApiError, match=elsewhere.url) as refused:
            ask()
        assert 'private' not in str(refused.value)
    assert elsewhere.requests == []


def test_redirect_within_host_followed(server: Server, service: client.ApiClient) -> None:
    server.answers = [
        Answer(308, headers={'Location': '/precache/v1/requests?limit=1'}),
        Answer(body=b'{"requests": []}'),
    ]
    assert service.get('requests', query={'limit': 1}) == {'requests': []}
    assert [path for path, _ in server.requests] == [
        '/v1/requests?limit=1',
        '/precache/v1/requests?limit=1',
    ]
    assert server.tokens() == ['secret-token', 'secret-token']


def test_redirect_loop_is_error(server: Server, service: client.ApiClient) -> None:
    server.answers = [Answer(302, headers={'Location': '/again'})] * 11
    with pytest.raises(client.ApiError, match='redirected more than 10 times'):
        service.get('requests')
