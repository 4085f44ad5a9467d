# SPDX-License-Identifier: Apache-2.0
"""Brokers in memory: separate by URL, with contexts but no tokens, and errors of our own."""

import contextlib
import json
import pathlib
import socket
import ssl
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import amqp
import kombu.exceptions
import oslo_messaging as messaging
import pytest
import trustme
from oslo_config import cfg
from oslo_context import context as oslo_context
from oslo_messaging._drivers import common as rabbit_common, impl_rabbit

from nova_precache import conf as options, context, exception, outages, rpc
from tools.waiting import TIMEOUT_SECONDS

TOPIC = 'precache_test'
CTXT = context.admin_context()


class Endpoint(rpc.Endpoint):
    """Answers with its name, and records its callers."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.asked_by: list[context.RequestContext] = []
        self.cast = threading.Event()
        self.ids: list[tuple[str, str | None]] = []

    def name(self, ctxt: context.RequestContext) -> str:
        self.asked_by.append(ctxt)
        return self._name

    def echo(self, ctxt: context.RequestContext, what: Any) -> Any:
        return what

    def note(self, ctxt: context.RequestContext) -> None:
        self.cast.set()

    def note_ids(self, ctxt: context.RequestContext) -> None:
        """Record the ids that a log line of this thread would have."""
        current = oslo_context.get_current()
        assert current is not None
        self.ids.append((current.request_id, current.global_request_id))

    def conflict(self, ctxt: context.RequestContext) -> None:
        raise exception.AgentConflict('another agent has this name')

    def _hidden(self, ctxt: context.RequestContext) -> str:
        return 'hidden'


Serve = Callable[..., Endpoint]


@pytest.fixture
def conf() -> Any:
    return options.new(config_files=[])


@pytest.fixture
def connect(conf: Any) -> Callable[[str], rpc.Transport]:
    """Return a function that connects to a broker in memory of the test's own, by a name."""
    own = uuid.uuid4().hex
    return lambda name: rpc.connect(conf, f'fake:///{own}-{name}')


@pytest.fixture
def serve(connect: Callable[[str], rpc.Transport]) -> Iterator[Serve]:
    """Return a function that serves an endpoint on a broker."""
    with contextlib.ExitStack() as stack:

        def run(broker: str, server_name: str = 'server1') -> Endpoint:
            endpoint = Endpoint(f'{broker}/{server_name}')
            server = rpc.Server(connect(broker), TOPIC, server_name, [endpoint])
            server.start()
            stack.callback(server.stop)
            return endpoint

        yield run


def _call(client: rpc.Client, method: str, **arguments: Any) -> Any:
    return client.call(CTXT, method, '1.0', timeout_seconds=TIMEOUT_SECONDS, **arguments)


def test_each_memory_url_has_own_exchange(
    serve: Serve, connect: Callable[[str], rpc.Transport]
) -> None:
    serve('a')
    serve('b')

    assert _call(rpc.Client(connect('a'), TOPIC), 'name') == 'a/server1'
    assert _call(rpc.Client(connect('b'), TOPIC), 'name') == 'b/server1'


def test_call_reaches_named_server(serve: Serve, connect: Callable[[str], rpc.Transport]) -> None:
    for server in ('host1', 'host2'):
        serve('a', server)
    client = rpc.Client(connect('a'), TOPIC)

    assert _call(client, 'name', server='host2') == 'a/host2'
    assert _call(client, 'name', server='host1') == 'a/host1'


def test_cast_reaches_server(serve: Serve, connect: Callable[[str], rpc.Transport]) -> None:
    endpoint = serve('a')

    rpc.Client(connect('a'), TOPIC).cast(CTXT, 'note', '1.0')

    assert endpoint.cast.wait(TIMEOUT_SECONDS)


def test_arguments_and_answers_arrive_unchanged(
    serve: Serve, connect: Callable[[str], rpc.Transport]
) -> None:
    serve('a')
    sent = {'text': 'ä', 'number': 2**40, 'nothing': None, 'list': [1, 'b']}

    assert _call(rpc.Client(connect('a'), TOPIC), 'echo', what=sent) == sent


def test_context_crosses_wire_without_token(
    serve: Serve, connect: Callable[[str], rpc.Transport]
) -> None:
    endpoint = serve('a')
    ctxt = context.RequestContext(
        auth_token='secret',
        user_id='u1',
        project_id='p1',
        roles=['reader'],
        request_id='req-1',
        global_request_id=f'req-{uuid.uuid4()}',
        overwrite=False,
    )

    rpc.Client(connect('a'), TOPIC).call(ctxt, 'name', '1.0', timeout_seconds=TIMEOUT_SECONDS)

    [arrived] = endpoint.asked_by
    assert arrived.to_wire() == ctxt.to_wire()
    assert (arrived.user_id, arrived.project_id, arrived.roles) == ('u1', 'p1', ['reader'])
    assert not arrived.is_admin
    assert arrived.auth_token is None
    assert 'secret' not in repr(rpc.message.ContextSerializer().serialize_context(ctxt))


def test_service_context_stays_admin(serve: Serve, connect: Callable[[str], rpc.Transport]) -> None:
    endpoint = serve('a')

    _call(rpc.Client(connect('a'), TOPIC), 'name')

    assert endpoint.asked_by[0].is_admin


def test_unanswered_call_times_out(
    connect: Callable[[str], rpc.Transport],
) -> None:
    transport = connect('nobody')
    client = rpc.Client(transport, TOPIC)

    with pytest.raises(TimeoutError):
        client.call(CTXT, 'name', '1.0', timeout_seconds=0.1)

    assert transport.why_away(TIMEOUT_SECONDS) is None, 'the broker has taken the call'


def test_own_error_arrives_as_itself(serve: Serve, connect: Callable[[str], rpc.Transport]) -> None:
    serve('a')

    with pytest.raises(exception.AgentConflict, match='another agent has this name'):
        _call(rpc.Client(connect('a'), TOPIC), 'conflict')


def test_foreign_error_becomes_our_error(
    connect: Callable[[str], rpc.Transport], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = rpc.Client(connect('a'), TOPIC)

    def fail(*arguments: Any, **more: Any) -> None:
        raise messaging.RemoteError('DBConnectionError', 'the database is away', ['a trace'])

    monkeypatch.setattr(messaging.rpc.client._CallContext, 'call', fail)

    with pytest.raises(exception.PrecacheError, match='the database is away') as caught:
        _call(client, 'name')
    assert 'a trace' not in str(caught.value)


LOST = [
    ConnectionResetError(104, 'Connection reset by peer'),
    BrokenPipeError(32, 'Broken pipe'),
    TimeoutError('timed out'),
    ssl.SSLEOFError(8, 'EOF occurred in violation of protocol'),
    socket.gaierror(-2, 'Name or service not known'),
    OSError('Server unexpectedly closed connection'),
    OSError(113, 'No route to host'),
    EOFError('EOF'),
    amqp.RecoverableConnectionError('connection already closed'),
    amqp.ConnectionForced('broker forced connection closure'),
    amqp.UnexpectedFrame('Received frame'),
    kombu.exceptions.OperationalError('timed out'),
    messaging.MessageDeliveryFailure('no route to host'),
    messaging.ClientSendError(messaging.Target(topic='t'), ValueError('no connection')),
]


def _shown(error: Exception) -> str:
    return type(error).__name__


@pytest.mark.parametrize('error', LOST, ids=_shown)
def test_lost_connection_means_unreachable(
    connect: Callable[[str], rpc.Transport], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    client = rpc.Client(connect('a'), TOPIC)
    _fail_to_send(monkeypatch, error)

    for attempt in (lambda: _call(client, 'name'), lambda: client.cast(CTXT, 'note', '1.0')):
        with pytest.raises(exception.CellUnreachable) as caught:
            attempt()
        assert str(error) in str(caught.value)
        assert not isinstance(caught.value, exception.BrokerRefused)


@pytest.mark.parametrize(
    'error',
    [
        amqp.AccessRefused('Login was refused', (10, 40), 'Connection.open', 403),
        amqp.NotAllowed('access to vhost refused for user', (10, 40), 'Connection.open', 530),
    ],
    ids=_shown,
)
def test_broker_refusal_differs_from_outage(
    connect: Callable[[str], rpc.Transport], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    client = rpc.Client(connect('a'), TOPIC)
    lost = messaging.MessageDeliveryFailure('Unable to connect after 1 tries: it was refused')
    lost.__context__ = error  # as if it had been connected before
    for raised in (error, lost):
        _fail_to_send(monkeypatch, raised)
        with pytest.raises(exception.BrokerRefused, match='refused'):
            _call(client, 'name')


@pytest.mark.parametrize(
    'error',
    [
        ConnectionResetError(104, 'Connection reset by peer'),
        TimeoutError('the endpoint waited too long'),
        OSError(28, 'No space left on device'),
        ValueError('a value'),
    ],
    ids=_shown,
)
def test_endpoint_error_is_no_connection_error(
    connect: Callable[[str], rpc.Transport], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    client = rpc.Client(connect('a'), TOPIC)
    try:
        raise error
    except type(error):
        sent = rabbit_common.serialize_remote_exception(sys.exc_info())
    _fail_to_send(monkeypatch, rabbit_common.deserialize_remote_exception(sent, ['nova_precache']))

    with pytest.raises(exception.PrecacheError) as caught:
        _call(client, 'name')

    assert type(caught.value) is exception.PrecacheError
    assert type(error).__name__ in str(caught.value)
    assert 'Traceback' not in str(caught.value)


@pytest.mark.parametrize(
    'error',
    [
        cfg.RequiredOptError('lock_path', cfg.OptGroup('oslo_concurrency')),
        RuntimeError('Configuration Error: rabbit_stream_fanout need rabbit_qos_prefetch_count'),
    ],
    ids=_shown,
)
def test_conflicting_options_are_configuration_error(
    connect: Callable[[str], rpc.Transport], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    client = rpc.Client(connect('a'), TOPIC)
    _fail_to_send(monkeypatch, error)

    with pytest.raises(exception.ConfigError, match=r'lock_path|rabbit_stream_fanout'):
        _call(client, 'name')


def _fail_to_send(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*arguments: Any, **more: Any) -> None:
        raise error

    monkeypatch.setattr(messaging.rpc.client._BaseCallContext, 'call', fail)
    monkeypatch.setattr(messaging.rpc.client._BaseCallContext, 'cast', fail)


def test_refused_first_connection_means_unreachable(
    conf: Any, free_port: Callable[[], int]
) -> None:
    transport = rpc.connect(conf, f'rabbit://127.0.0.1:{free_port()}/')

    for attempt in (
        lambda: _call(rpc.Client(transport, TOPIC, retries=0), 'name'),
        lambda: rpc.Client(transport, TOPIC, retries=0).cast(CTXT, 'note', '1.0'),
    ):
        with pytest.raises(exception.CellUnreachable, match=r'(?i)refused'):
            attempt()


def test_private_method_cannot_be_called(
    serve: Serve, connect: Callable[[str], rpc.Transport]
) -> None:
    serve('a')

    with pytest.raises(exception.PrecacheError):
        _call(rpc.Client(connect('a'), TOPIC), '_hidden')


def test_version_above_pin_cannot_be_sent(
    connect: Callable[[str], rpc.Transport],
) -> None:
    pinned = rpc.Client(connect('a'), TOPIC, version_cap='1.3')

    assert [pinned.can_send(version) for version in ('1.0', '1.3', '1.4', '2.0')] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize('pin', [None, '', 'auto'])
def test_any_version_sent_without_pin(pin: str | None) -> None:
    assert rpc.version_cap('compute', pin, newest='1.2') is None


@pytest.mark.parametrize('pin', ['0.9', '1.0', '1.2', '1.7'])
def test_pin_accepts_low_or_future_version(pin: str) -> None:
    assert rpc.version_cap('compute', pin, newest='1.2') == pin


@pytest.mark.parametrize(
    ('pin', 'why'),
    [
        ('abc', 'neither auto nor a version such as 1.2'),
        ('1.x', 'neither auto nor a version such as 1.2'),
        ('1', 'neither auto nor a version such as 1.2'),
        ('1.0\n', 'neither auto nor a version such as 1.2'),
        ('-1.0', 'neither auto nor a version such as 1.2'),
        ('2.0', 'not known, the newest version is 1.2'),
        ('0.9', 'too low, the oldest version is 1.0'),
    ],
)
def test_invalid_pin_refused_with_option(pin: str, why: str) -> None:
    with pytest.raises(exception.ConfigError) as caught:
        rpc.version_cap('conductor', pin, newest='1.2', oldest='1.0')
    assert str(caught.value).startswith(f'[upgrade_levels] conductor = {pin} is ')
    assert why in str(caught.value)


def test_call_forbidden_by_pin_not_sent(
    serve: Serve, connect: Callable[[str], rpc.Transport]
) -> None:
    endpoint = serve('a')
    pinned = rpc.Client(connect('a'), TOPIC, version_cap='0.9')

    for send in (
        lambda: _call(pinned, 'name'),
        lambda: pinned.cast(CTXT, 'note', '1.0'),
    ):
        with pytest.raises(exception.VersionUnsupported, match=r'1\.0 is above the pinned version'):
            send()
    assert endpoint.asked_by == []
    assert not endpoint.cast.is_set()


def test_unknown_method_of_older_server_reported(
    serve: Serve, connect: Callable[[str], rpc.Transport]
) -> None:
    serve('a')
    client = rpc.Client(connect('a'), TOPIC)

    with pytest.raises(exception.VersionUnsupported, match=r'name 1\.1 is not supported'):
        client.call(CTXT, 'name', '1.1', timeout_seconds=TIMEOUT_SECONDS)
    with pytest.raises(exception.VersionUnsupported, match=r'added 1\.0 is not supported'):
        client.call(CTXT, 'added', '1.0', timeout_seconds=TIMEOUT_SECONDS)


def test_call_and_answer_use_separate_connections(
    connect: Callable[[str], rpc.Transport],
) -> None:
    transport = connect('a')

    assert transport.calling._driver is not transport.serving._driver


def test_retired_transport_closes_after_last_answer(
    conf: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = threading.Semaphore(0)
    transport = rpc.connect(conf, 'rabbit://nowhere/')
    for raw in (transport.calling, transport.serving):
        monkeypatch.setattr(raw, 'cleanup', closed.release)

    def answer() -> bool:
        transport.retire()
        return closed.acquire(blocking=False)

    assert not transport.send(CTXT, 'name 1.0', TIMEOUT_SECONDS, answer)
    assert closed.acquire(timeout=TIMEOUT_SECONDS)
    assert closed.acquire(timeout=TIMEOUT_SECONDS)
    with pytest.raises(exception.PrecacheError, match='The connections to the broker are closed'):
        rpc.Client(transport, TOPIC).cast(CTXT, 'note', '1.0')


def test_background_server_serves_and_stops(
    connect: Callable[[str], rpc.Transport],
) -> None:
    server = rpc.Server(connect('a'), TOPIC, 'server1', [Endpoint('a')])

    server.start_in_background()

    assert _call(rpc.Client(connect('a'), TOPIC), 'name') == 'a'
    server.stop()


@pytest.mark.parametrize('url', ['nonsense://host/', 'rabbit://u:secret@host:port/'])
def test_unusable_url_names_option_without_password(conf: Any, url: str) -> None:
    with pytest.raises(exception.ConfigError, match='transport_url') as caught:
        rpc.connect(conf, url)
    assert 'secret' not in str(caught.value)


@pytest.mark.parametrize(
    ('url', 'exchange'),
    [
        ('fake:///cell1', 'nova-precache-cell1'),
        ('fake:///', 'nova-precache-api'),
        ('fake://', 'nova-precache-api'),
        ('rabbit://u:p@host/cell1', None),
    ],
)
def test_only_memory_url_names_exchange(conf: Any, url: str, exchange: str | None) -> None:
    assert rpc.transport.exchange_of(messaging.TransportURL.parse(conf, url)) == exchange


def test_server_stopped_before_broker_serves_nothing(
    connect: Callable[[str], rpc.Transport],
) -> None:
    server = rpc.Server(connect('a'), TOPIC, 'server1', [Endpoint('a')])
    server.stop()

    server.start()

    client = rpc.Client(connect('a'), TOPIC)
    with pytest.raises(TimeoutError):
        client.call(CTXT, 'name', '1.0', timeout_seconds=0.2)


@pytest.mark.parametrize(
    ('url', 'shown'),
    [
        ('rabbit://user:secret@host/v', 'rabbit://host/v'),
        ('rabbit://user:se:cret@host:5672/v?ssl=1', 'rabbit://host:5672/v'),
        ('rabbit://user:s%40cret@host/v', 'rabbit://host/v'),
        ('rabbit://user:p@ss@host/', 'rabbit://host/'),
        ('rabbit://a:secret@h1:5672,b:secret@h2/v', 'rabbit://h1:5672,h2/v'),
        ('rabbit://a:secret@h1,h2/v', 'rabbit://h1,h2/v'),
        ('rabbit://a:secret@[::1]:5672/v', 'rabbit://[::1]:5672/v'),
        ('rabbit://host', 'rabbit://host/'),
        ('fake:///cell1', 'fake:///cell1'),
        ('', ''),
        # Not quoted: /, ?, # and a comma, before which could be a port.
        ('rabbit://user:pa/ss@host/', '<unreadable>'),
        ('rabbit://user:12/ss@host/v', '<unreadable>'),
        ('rabbit://user:12?ss@host/v', '<unreadable>'),
        ('rabbit://user:12#ss@host/v', '<unreadable>'),
        ('rabbit://user:12,ss@host/v', '<unreadable>'),
        ('rabbit://user:[ss@host/v', '<unreadable>'),
        ('secret', '<unreadable>'),
    ],
)
def test_url_shown_without_credentials(conf: Any, url: str, shown: str) -> None:
    assert rpc.describe_url(conf, url) == shown


# Limits


@contextlib.contextmanager
def _brokers(number: int) -> Iterator[tuple[list[int], set[int]]]:
    """Listen as brokers that close each connection; return their ports, and those contacted."""
    spoken_to: set[int] = set()

    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                caller, _ = listener.accept()
                with caller:
                    spoken_to.add(listener.getsockname()[1])

    with contextlib.ExitStack() as stack:
        listeners = [
            stack.enter_context(socket.create_server(('127.0.0.1', 0))) for _ in range(number)
        ]
        threads = [threading.Thread(target=serve, args=[each]) for each in listeners]
        for thread in threads:
            thread.start()
        yield [each.getsockname()[1] for each in listeners], spoken_to
        for listener, thread in zip(listeners, threads, strict=True):
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_every_broker_host_tried(conf: Any) -> None:
    with _brokers(3) as (ports, spoken_to):
        hosts = ','.join(f'u:p@127.0.0.1:{port}' for port in ports)
        transport = rpc.connect(conf, f'rabbit://{hosts}/v')
        with pytest.raises(exception.CellUnreachable):
            rpc.Client(transport, TOPIC, retries=0).cast(CTXT, 'note', '1.0')
    assert spoken_to == set(ports)


@pytest.mark.parametrize(
    ('url', 'retries', 'tried_again'),
    [
        ('rabbit://u:p@a/', 0, 0),
        ('rabbit://u:p@a/', 1, 1),
        ('rabbit://u:p@a,u:p@b,u:p@c/', 0, 2),
        ('rabbit://u:p@[::1]:5672,u:p@[::2]:5672/', 1, 3),
        ('rabbit://', 1, 1),
        ('rabbit://u:p@a,u:p@b/', None, None),
    ],
)
def test_retries_cover_all_hosts(
    conf: Any, url: str, retries: int | None, tried_again: int | None
) -> None:
    client = rpc.Client(rpc.connect(conf, url), TOPIC, retries=retries)
    assert client._client.retry == tried_again


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A broker that takes casts, but no call until the event is set."""
    answers = threading.Event()

    def call(self: Any, *arguments: Any, **more: Any) -> str:
        answers.wait()
        return 'answered'

    monkeypatch.setattr(messaging.rpc.client._BaseCallContext, 'call', call)
    monkeypatch.setattr(messaging.rpc.client._BaseCallContext, 'cast', lambda *_, **__: None)
    monkeypatch.setattr(rpc.transport, 'SEND_SECONDS', 0.1)
    yield answers
    answers.set()


def test_call_fails_without_reply_queue(
    conf: Any, hanging: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = rpc.connect(conf, 'rabbit://127.0.0.1:1/')
    client = rpc.Client(transport, TOPIC, retries=0)

    for _ in range(2):
        with pytest.raises(exception.CellUnreachable, match=r'no answer from the broker in 0\.1 s'):
            client.call(CTXT, 'name', '1.0', timeout_seconds=3600)
    hanging.set()
    monkeypatch.setattr(rpc.transport, 'SEND_SECONDS', TIMEOUT_SECONDS)

    assert client.call(CTXT, 'name', '1.0', timeout_seconds=TIMEOUT_SECONDS) == 'answered'


def test_call_limits_wait_for_broker(
    conf: Any,
    connect: Callable[[str], rpc.Transport],
    hanging: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rpc.transport, 'SEND_SECONDS', TIMEOUT_SECONDS)
    for at, waited in ((rpc.connect(conf, 'rabbit://127.0.0.1:1/'), '0.1'), (connect('a'), '0.3')):
        client = rpc.Client(at, TOPIC, retries=0)
        with pytest.raises(exception.CellUnreachable, match=f'broker in {waited} s'):
            client.call(CTXT, 'name', '1.0', timeout_seconds=0.2, send_seconds=0.1)


def test_hanging_call_ends_at_timeout(
    connect: Callable[[str], rpc.Transport], hanging: threading.Event
) -> None:
    client = rpc.Client(connect('a'), TOPIC)

    with pytest.raises(exception.CellUnreachable, match=r'no answer from the broker in 0\.2 s'):
        client.call(CTXT, 'name', '1.0', timeout_seconds=0.1)


def test_cast_to_silent_broker_abandoned(
    connect: Callable[[str], rpc.Transport], monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = threading.Event()
    monkeypatch.setattr(
        messaging.rpc.client._BaseCallContext, 'cast', lambda *_, **__: silent.wait()
    )
    monkeypatch.setattr(rpc.transport, 'SEND_SECONDS', 0.1)

    with pytest.raises(exception.CellUnreachable, match='no answer from the broker'):
        rpc.Client(connect('a'), TOPIC).cast(CTXT, 'note', '1.0')

    silent.set()


def test_further_casts_to_silent_broker_logged_once(
    connect: Callable[[str], rpc.Transport],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    silent = threading.Event()
    monkeypatch.setattr(
        messaging.rpc.client._BaseCallContext, 'cast', lambda *_, **__: silent.wait()
    )
    monkeypatch.setattr(rpc.transport, 'SEND_SECONDS', 0.01)
    client = rpc.Client(connect('a'), TOPIC)
    errors: list[Exception] = []

    for _ in range(rpc.transport.MOST_UNANSWERED + 2):
        with pytest.raises(exception.CellUnreachable) as caught:
            client.cast(CTXT, 'note', '1.0')
        errors.append(caught.value)
    silent.set()

    assert 'the broker has accepted none' in str(errors[-1])
    assert all(map(outages.is_logged, errors)), 'so that no caller logs them'
    assert len(caplog.records) == 1


def test_failed_server_start_retried(
    connect: Callable[[str], rpc.Transport],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(caplog.handler, 'filters', [])
    outages.keep_short([caplog.handler])
    monkeypatch.setattr(rpc.server, 'START_PAUSE_SECONDS', 0)
    errors = [ConnectionResetError(104, 'Connection reset by peer'), amqp.NotAllowed('no vhost')]
    listen = messaging.Transport._listen

    def fail(*arguments: Any) -> Any:
        if errors:
            raise errors.pop(0)
        return listen(*arguments)

    monkeypatch.setattr(messaging.Transport, '_listen', fail)
    transport = connect('a')
    server = rpc.Server(transport, TOPIC, 'server1', [Endpoint('a')])

    server.start()

    assert _call(rpc.Client(connect('a'), TOPIC), 'name') == 'a'
    server.stop()
    name = transport.outage.name
    *away, again = [message for message in caplog.messages if message.startswith(name)]
    assert away == [
        f'{name} is unavailable: [Errno 104] Connection reset by peer',
        f'{name} is unavailable: no vhost',
    ]
    assert again.startswith(f'{name} is available again, after ')
    assert 'Traceback' not in caplog.text


def test_failed_server_start_stops_at_once(
    connect: Callable[[str], rpc.Transport], monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = threading.Event()

    def fail(*arguments: Any) -> None:
        failed.set()
        raise ConnectionResetError(104, 'Connection reset by peer')

    monkeypatch.setattr(messaging.Transport, '_listen', fail)
    monkeypatch.setattr(rpc.server, 'START_PAUSE_SECONDS', 3600)
    server = rpc.Server(connect('a'), TOPIC, 'server1', [Endpoint('a')])
    starting = threading.Thread(target=server.start)
    starting.start()
    assert failed.wait(TIMEOUT_SECONDS)

    server.stop()

    starting.join(TIMEOUT_SECONDS)
    assert not starting.is_alive()


def test_log_names_broker_without_credentials(
    conf: Any, free_port: Callable[[], int], caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    transport = rpc.connect(conf, f'rabbit://u:secret@127.0.0.1:{port}/v', 'cell one')

    for _ in range(3):
        with pytest.raises(exception.CellUnreachable):
            rpc.Client(transport, TOPIC, retries=0).cast(CTXT, 'note', '1.0')

    [line] = [each for each in caplog.messages if 'is unavailable' in each]
    assert line.startswith(f'Broker rabbit://127.0.0.1:{port}/v (cell one) is unavailable: ')
    assert 'secret' not in caplog.text


# TLS


@contextlib.contextmanager
def _listening(name: str, authority: trustme.CA) -> Iterator[tuple[int, list[bytes]]]:
    """Listen as a TLS broker with this name; return the port and the first bytes it receives."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(tls)
    said: list[bytes] = []

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                caller, _ = listener.accept()
                # A client that does not trust the certificate ends it here.
                with (
                    contextlib.suppress(OSError),
                    caller,
                    tls.wrap_socket(caller, server_side=True) as greeted,
                ):
                    said.append(greeted.recv(8))

    with socket.create_server(('127.0.0.1', 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1], said
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize(
    ('name', 'trusts', 'is_reached'),
    [('127.0.0.1', True, True), ('127.0.0.1', False, False), ('other.example', True, False)],
    ids=['good', 'of another authority', 'of another name'],
)
def test_tls_broker_needs_valid_certificate(
    conf: Any, tmp_path: pathlib.Path, name: str, trusts: bool, is_reached: bool
) -> None:
    authority = trustme.CA()
    (authority if trusts else trustme.CA()).cert_pem.write_to_path(tmp_path / 'ca.pem')
    conf.register_opts(impl_rabbit.rabbit_opts, 'oslo_messaging_rabbit')
    conf.set_override('ssl', True, 'oslo_messaging_rabbit')
    conf.set_override('ssl_ca_file', str(tmp_path / 'ca.pem'), 'oslo_messaging_rabbit')
    with _listening(name, authority) as (port, said):
        transport = rpc.connect(conf, f'rabbit://u:secret@127.0.0.1:{port}/')
        with pytest.raises(exception.CellUnreachable) as caught:
            rpc.Client(transport, TOPIC, retries=0).cast(CTXT, 'note', '1.0')
    assert said == ([b'AMQP\0\0\x09\x01'] if is_reached else [])
    assert 'secret' not in str(caught.value)


# Request ids


def test_served_call_logs_ids_of_caller(
    serve: Serve, connect: Callable[[str], rpc.Transport]
) -> None:
    endpoint = serve('a')
    client = rpc.Client(connect('a'), TOPIC)
    first, second = (f'req-{uuid.uuid4()}' for _ in range(2))
    for ids in ((first, None), (second, first)):
        with context.bind_request_id(*ids):
            client.call(context.admin_context(), 'note_ids', '1.0', timeout_seconds=TIMEOUT_SECONDS)
            assert context.current_id() == first  # of the call before ours
    assert endpoint.ids == [(first, None), (second, first)]


# Invalid messages, and errors that others send


def _rabbit_error(data: object) -> Exception:
    """Make oslo.messaging's error of an answer that carries an error."""
    return rabbit_common.deserialize_remote_exception(json.dumps(data), [])


@pytest.mark.parametrize(
    ('module', 'name', 'expected'),
    [
        ('nova_precache.exception', 'AgentConflict', exception.AgentConflict),
        ('nova_precache.exception', 'ImageNotUsable', exception.InvalidInput),
        ('nova_precache.exception', 'CellUnreachable', exception.PrecacheError),
        ('nova_precache.exception', 'HostOccupied', exception.PrecacheError),
        ('nova_precache.exception', 'errno', exception.PrecacheError),
        ('oslo_messaging.rpc.dispatcher', 'NoSuchMethod', exception.VersionUnsupported),
        ('oslo_messaging.rpc.dispatcher', 'UnsupportedVersion', exception.VersionUnsupported),
        ('nova.exception', 'MigrationError', exception.PrecacheError),
        ('builtins', 'KeyError', exception.PrecacheError),
        ('builtins', 'ConnectionResetError', exception.PrecacheError),
        ('builtins', 'TimeoutError', exception.PrecacheError),
        ('builtins', 'SystemExit', exception.PrecacheError),
        (5, ['x'], exception.PrecacheError),
        (None, None, exception.PrecacheError),
    ],
)
def test_sent_error_fits_one_line(
    connect: Callable[[str], rpc.Transport],
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    name: Any,
    expected: type[Exception],
) -> None:
    text = 'it is \x1b[31m so' + 'x' * 5000
    sent = {'class': name, 'module': module, 'message': text, 'args': [text], 'tb': ['a trace']}

    def fail(*arguments: Any, **more: Any) -> None:
        raise _rabbit_error(sent)

    monkeypatch.setattr(messaging.rpc.client._CallContext, 'call', fail)

    with pytest.raises(exception.PrecacheError) as caught:
        _call(rpc.Client(connect('a'), TOPIC), 'name')
    assert type(caught.value) is expected
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1100
    assert 'a trace' not in str(caught.value)


@pytest.mark.parametrize(
    'sent', [5, ['x'], None, {'class': 'KeyError', 'module': 'builtins', 'message': ['x']}]
)
def test_unreadable_answer_is_our_error(
    connect: Callable[[str], rpc.Transport], monkeypatch: pytest.MonkeyPatch, sent: object
) -> None:
    def fail(*arguments: Any, **more: Any) -> None:
        raise _rabbit_error(sent)

    monkeypatch.setattr(messaging.rpc.client._CallContext, 'call', fail)

    with pytest.raises(exception.PrecacheError, match=r'name 1\.0'):
        _call(rpc.Client(connect('a'), TOPIC), 'name')


def test_local_connection_error_is_no_answer(
    connect: Callable[[str], rpc.Transport], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **more: Any) -> None:
        raise ConnectionResetError(104, 'Connection reset by peer')

    monkeypatch.setattr(messaging.rpc.client._CallContext, 'call', fail)

    with pytest.raises((ConnectionResetError, exception.CellUnreachable)):
        _call(rpc.Client(connect('a'), TOPIC), 'name')


GOOD: dict[str, Any] = {'method': 'name', 'args': {}, 'version': '1.0'}


@pytest.mark.parametrize(
    'odd',
    [
        {'method': None},
        {'method': 5},
        {'method': ['name']},
        {'method': 'x' * 4000},
        {'method': '__class__'},
        {'method': '_hidden'},
        {'method': 'target'},
        {'method': 'name\n'},
        {'method': 'added'},
        {'args': []},
        {'args': 'what'},
        {'args': {'ctxt': 1}},
        {'args': {'self': 1}},
        {'version': 1},
        {'version': 'one'},
        {'version': '1.0.0.0'},
        {'version': '2.0'},
        {'version': '1.9'},
        {'version': '9' * 5000},
        {'namespace': 'control'},
        {'timeout': 'long'},
        {'timeout': 2**70},
        {'timeout': [1]},
        {'timeout': float('nan')},
    ],
)
def test_invalid_call_refused_and_named_once(
    odd: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    dispatcher = rpc.server._Dispatcher([Endpoint('a')], 'Broker one')
    message = {**GOOD, **odd}
    incoming = Incoming(message, message.pop('timeout', None))

    for _ in range(3):
        with pytest.raises(messaging.ExpectedException):
            dispatcher.dispatch(incoming)

    [line] = caplog.messages
    assert line.startswith('Refused a call of ')
    assert line.isprintable()
    assert len(line) < 400
    assert dispatcher.dispatch(Incoming(dict(GOOD), None)) == 'a'


class Incoming:
    """A message as oslo.messaging passes it to a dispatcher."""

    def __init__(self, message: Any, client_timeout: Any) -> None:
        self.message = message
        self.client_timeout = client_timeout
        self.ctxt: dict[str, Any] = {}


def test_non_message_is_refused() -> None:
    for message in (None, 5, 'text', ['name']):
        with pytest.raises(messaging.ExpectedException):
            rpc.server._Dispatcher([Endpoint('a')], 'Broker one').dispatch(Incoming(message, None))
