# SPDX-License-Identifier: Apache-2.0
"""What a stock nova-compute is sent, and how its answer is read."""

import uuid
from collections.abc import Iterator
from typing import Any

import oslo_messaging as messaging
import pytest

from nova_precache import conf as options, context, exception, rpc
from nova_precache.compute import novarpc

CTXT = context.RequestContext(request_id='req-1', is_admin=True, overwrite=False)


class NovaCompute:
    """An endpoint like Nova's: it serves the scripted method, and knows no other."""

    def __init__(self, version: str) -> None:
        self.target = messaging.Target(version=version)
        self.calls: list[tuple[dict[str, Any], list[str]]] = []
        self.answer: Any = {}

    def cache_images(self, ctxt: dict[str, Any], image_ids: list[str]) -> Any:
        self.calls.append((ctxt, image_ids))
        return self.answer


class Served:
    """Nova-computes on one broker in memory."""

    def __init__(self) -> None:
        conf = options.new(config_files=[])
        self.transport = rpc.connect(conf, f'fake:///{uuid.uuid4().hex}')
        self._servers: list[Any] = []

    def serve(self, host: str, version: str = '6.5') -> NovaCompute:
        compute = NovaCompute(version)
        target = messaging.Target(exchange=self.transport.exchange, topic='compute', server=host)
        server = messaging.get_rpc_server(self.transport.serving, target, [compute])
        server.start()
        self._servers.append(server)
        return compute

    def api(self, pin: str | None = None, timeout_seconds: float = 20) -> novarpc.NovaComputeAPI:
        return novarpc.NovaComputeAPI(
            self.transport,
            version_cap=pin,
            connect_retries=0,
            timeout_seconds=timeout_seconds,
            monitor_seconds=timeout_seconds,
        )

    def stop(self) -> None:
        for server in self._servers:
            server.stop()
            server.wait()


@pytest.fixture
def served() -> Iterator[Served]:
    made = Served()
    yield made
    made.stop()


def test_nova_call_has_only_image_token(
    served: Served,
) -> None:
    compute = served.serve('h1')
    compute.answer = {'i1': 'existing'}
    api = served.api()

    api.probe()
    assert api.cache_images(CTXT, 'h1', ['i1'], 'token-1') == {'i1': 'existing'}

    [(ctxt, image_ids)] = compute.calls
    assert image_ids == ['i1']
    assert ctxt == {
        'request_id': 'req-1',
        'global_request_id': None,
        'is_admin': True,
        'auth_token': 'token-1',
    }


def test_missing_token_sends_empty_one(served: Served) -> None:
    compute = served.serve('h1')

    served.api().cache_images(CTXT, 'h1', ['i1'], None)

    assert compute.calls[0][0]['auth_token'] == 'notused'


@pytest.mark.parametrize('answer', [{}, {'i2': 'cached'}, None, 'cached', {'i1': None}, [['i1']]])
def test_answer_without_image_is_no_result(served: Served, answer: Any) -> None:
    served.serve('h1').answer = answer

    assert served.api().cache_images(CTXT, 'h1', ['i1'], 'token-1') == {}


@pytest.mark.parametrize(
    ('pin', 'serves'),
    [(None, '6.5'), (None, '6.0'), ('6.5', '6.0'), ('5.4', '5.4'), ('5.13', '5.13')],
)
def test_version_matches_nova_unless_pinned(served: Served, pin: str | None, serves: str) -> None:
    compute = served.serve('h1', serves)
    compute.answer = {'i1': 'cached'}

    assert served.api(pin).cache_images(CTXT, 'h1', ['i1'], 'token-1') == {'i1': 'cached'}


def test_too_old_compute_unsupported(served: Served) -> None:
    served.serve('h1', '5.13')

    with pytest.raises(exception.VersionUnsupported, match=r'cache_images 6\.0 is not supported'):
        served.api().cache_images(CTXT, 'h1', ['i1'], 'token-1')


def test_low_pin_sends_nothing(served: Served) -> None:
    compute = served.serve('h1')
    api = served.api('5.3')

    assert api.why_unsupported() == '[upgrade_levels] compute = 5.3 is too low for cache_images'
    with pytest.raises(exception.VersionUnsupported, match=r'5\.3 is too low'):
        api.cache_images(CTXT, 'h1', ['i1'], 'token-1')
    assert compute.calls == []


def test_unserved_host_times_out(served: Served) -> None:
    with pytest.raises(TimeoutError):
        served.api(timeout_seconds=0.2).cache_images(CTXT, 'h1', ['i1'], 'token-1')
