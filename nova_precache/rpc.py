# SPDX-License-Identifier: Apache-2.0
"""Connections to message brokers, and the clients and servers that use them.

The in-memory driver shares its exchanges across the whole process, regardless of the URL. So a
URL such as ``fake:///cell1`` gets an exchange named after its virtual host; a real broker's URL
keeps ``[DEFAULT] control_exchange``.

oslo.messaging waits without a limit in some places: for the reply queue, which it creates at the
first call; for a channel of a broker that has just become silent; for any answer of such a
broker if heartbeats are off. So each call and cast runs in its own thread, and is abandoned when
it takes too long: :class:`Transport` has the limits.
"""

import contextlib
import functools
import inspect
import logging
import re
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any, TypeVar

import amqp
import kombu.exceptions
import oslo_messaging as messaging
import tenacity
from oslo_config import cfg
from oslo_messaging.rpc import server as rpc_server

from nova_precache import context, exception, outages, wire

LOG = logging.getLogger(__name__)

Method = TypeVar('Method', bound=Callable[..., Any])
T = TypeVar('T')

UNREADABLE = '<unreadable>'
AUTO = 'auto'
OWN_BROKER = '[DEFAULT] transport_url'
# Limit for sending a message, from the first connection to the broker's confirmation.
SEND_SECONDS = 30.0
# How long a command waits at its start for a broker's refusal.
REFUSAL_SECONDS = 5.0
# Unconfirmed messages to a silent broker before further ones are refused.
MOST_UNANSWERED = 32
START_PAUSE_SECONDS = 1.0
LONGEST_START_PAUSE_SECONDS = 60.0
# Largest number of probes skipped after failures.
MOST_PAUSES = 12
# No server listens to it.
PROBE_TOPIC = 'precache_probe'
# If a new connection fails, oslo.messaging passes on the errors of its libraries.
_NO_CONNECTION = (
    messaging.MessageDeliveryFailure,
    messaging.ClientSendError,
    kombu.exceptions.KombuError,
    amqp.AMQPError,
    OSError,
    EOFError,
)
# Raised by a broker that was reached, and will refuse again.
_REFUSED = (amqp.AccessRefused, amqp.NotAllowed)
# Errors of a server that does not know the called method or version.
_UNKNOWN = frozenset({'UnsupportedVersion', 'NoSuchMethod'})
# Describes a broker, so it is never accepted as a remote error.
_NEVER_REMOTE = exception.CellUnreachable
_METHOD = re.compile('[a-z][a-z_]{0,63}')
_VERSION = re.compile(r'[0-9]{1,5}\.[0-9]{1,5}')
_MONITOR_MAX_SECONDS = 10**6


class Endpoint:
    """The base of endpoints: answers the probe that precedes a client's first call.

    The class of an endpoint declares the version that it serves.
    """

    target = messaging.Target(version='1.0')

    def __init_subclass__(cls, version: str = '1.0') -> None:
        cls.target = messaging.Target(version=version)

    def ping(self, ctxt: context.RequestContext, **unknown: Any) -> str:
        """Return the served version; most callers only test whether the message can be sent."""
        return str(self.target.version)


def refuses(*errors: type[Exception]) -> Callable[[Method], Method]:
    """Declare errors that a method of an endpoint may answer; they are not logged as failures."""
    return messaging.expected_exceptions(*errors)  # type: ignore[no-any-return]


class ContextSerializer(messaging.Serializer):  # type: ignore[misc]
    """Carries the request context without its token."""

    def serialize_entity(self, ctxt: context.RequestContext, entity: Any) -> Any:
        return entity

    def deserialize_entity(self, ctxt: context.RequestContext, entity: Any) -> Any:
        return entity

    def serialize_context(self, ctxt: context.RequestContext) -> dict[str, Any]:
        return ctxt.to_wire()

    def deserialize_context(self, ctxt: dict[str, Any]) -> context.RequestContext:
        """Build the context of a call, under which the serving thread logs."""
        arrived = context.RequestContext.from_wire(ctxt)
        arrived.update_store()
        return arrived


class NovaContextSerializer(ContextSerializer):
    """Sends Nova the fields it needs: it calls the image service with the caller's token."""

    def serialize_context(self, ctxt: context.RequestContext) -> dict[str, Any]:
        return {
            'request_id': ctxt.request_id,
            'global_request_id': ctxt.global_request_id,
            'is_admin': ctxt.is_admin,
            'auth_token': ctxt.auth_token,
        }


class Client:
    """Calls and casts to one topic on one transport."""

    def __init__(
        self,
        transport: 'Transport',
        topic: str,
        version_cap: str | None,
        retries: int | None,
        serializer: messaging.Serializer | None = None,
    ) -> None:
        target = messaging.Target(exchange=transport.exchange, topic=topic, version='1.0')
        self._transport = transport
        self._client = messaging.get_rpc_client(
            transport.calling,
            target,
            version_cap=version_cap,
            serializer=serializer or ContextSerializer(),
            retry=connect_retries(retries, transport.hosts),
        )

    def can_send(self, version: str) -> bool:
        """Return whether the pin in ``[upgrade_levels]`` allows this version."""
        return bool(self._client.can_send_version(version))

    def call(
        self,
        ctxt: context.RequestContext,
        method: str,
        version: str,
        server: str | None = None,
        timeout_seconds: float | None = None,
        monitor_seconds: float | None = None,
        **arguments: Any,
    ) -> Any:
        """Call and wait; ``monitor_seconds`` without a heartbeat end the wait early.

        :raises TimeoutError: no answer arrived in time
        :raises nova_precache.exception.CellUnreachable: the broker did not take the message
        :raises nova_precache.exception.VersionUnsupported: the pin forbids the version, or the
            server does not know it
        :raises nova_precache.exception.PrecacheError: the call failed at the other end, or its
            answer is malformed; errors of this service keep their class
        """
        prepared = self._client.prepare(
            server=server,
            version=version,
            timeout=timeout_seconds,
            call_monitor_timeout=monitor_seconds,
        )
        what = f'{method} {version}'
        answer_seconds = timeout_seconds or self._client.conf.rpc_response_timeout
        self._transport.make_ready_for_replies()
        return self._transport.send(
            ctxt,
            what,
            answer_seconds + SEND_SECONDS,
            lambda: _answer(lambda: prepared.call(ctxt, method, **arguments), what),
        )

    def cast(
        self,
        ctxt: context.RequestContext,
        method: str,
        version: str,
        server: str | None = None,
        **arguments: Any,
    ) -> None:
        """Send without waiting for an answer.

        :raises nova_precache.exception.CellUnreachable: the broker did not take the message
        :raises nova_precache.exception.VersionUnsupported: the pin forbids the version
        """
        prepared = self._client.prepare(server=server, version=version)
        self._transport.send(
            ctxt,
            f'{method} {version}',
            SEND_SECONDS,
            lambda: prepared.cast(ctxt, method, **arguments),
        )


def connect_retries(retries: int | None, hosts: int) -> int | None:
    """Convert retries to those of oslo.messaging, which counts a try of each host.

    :param retries: of the whole list of hosts; None retries for ever
    """
    return None if retries is None else (retries + 1) * hosts - 1


def _answer(call: Callable[[], Any], what: str) -> Any:
    """Return the answer of a call; never mistake a remote error for one of this process."""
    try:
        return call()
    except messaging.RemoteError as exc:
        raise _sent_error(exc.exc_type, exc.value, what) from None
    except messaging.MessagingException:
        raise
    except Exception as exc:
        if _was_sent(exc):
            raise _sent_error(type(exc).__name__, exc.args[0], what) from None
        if isinstance(exc, AttributeError | LookupError | TypeError | ValueError):
            raise exception.PrecacheError(
                f'the answer to {what} cannot be read: {type(exc).__name__}'
            ) from exc
        raise


def _sent_error(name: object, text: object, what: str) -> exception.PrecacheError:
    """Build the error that another process raised, if its class may be raised here.

    A class whose constructor takes more than a text is replaced by its base class.
    """
    if not isinstance(name, str):
        return exception.PrecacheError(f'Remote error: {wire.line(text)}')
    if name in _UNKNOWN:
        return exception.VersionUnsupported(f'{what} is not known to whoever was called')
    known = getattr(exception, name, None)
    if not isinstance(known, type) or not issubclass(known, exception.PrecacheError):
        return exception.PrecacheError(f'Remote error: {wire.line(name)} {wire.line(text)}')
    if issubclass(known, _NEVER_REMOTE):
        return exception.PrecacheError(wire.line(text))
    plain = exception.PrecacheError.__init__
    kinds = (each for each in known.__mro__ if each.__init__ is plain)  # type: ignore[misc]
    made: exception.PrecacheError = next(kinds)(wire.line(text))
    return made


def _was_sent(error: Exception) -> bool:
    """Return whether a built-in error was sent by the other end: its text has a traceback.

    oslo.messaging instantiates built-in errors from answers, whatever modules are allowed.
    """
    text = error.args[0] if error.args else None
    is_built_in = type(error).__module__ == 'builtins'
    return is_built_in and isinstance(text, str) and '\n' in text


@contextlib.contextmanager
def _own_errors(what: str) -> Iterator[None]:
    """Translate errors of oslo.messaging; ``what`` is the call or cast."""
    try:
        yield
    except messaging.MessagingTimeout as exc:
        raise TimeoutError(str(exc)) from exc
    except exception.PrecacheError:
        raise
    except messaging.RPCVersionCapError as exc:
        raise exception.VersionUnsupported(
            f'{what} may not be sent, the pin is {exc.version_cap}'
        ) from exc
    # The in-memory driver raises these directly.
    except (messaging.UnsupportedVersion, messaging.NoSuchMethod) as exc:
        raise exception.VersionUnsupported(f'{what} is not known to whoever was called') from exc
    except Exception as exc:
        if isinstance(exc, _NO_CONNECTION):
            kind = exception.BrokerRefused if _is_refused(exc) else exception.CellUnreachable
            raise kind(_first_line(exc)) from exc
        if isinstance(exc, messaging.MessagingException):
            raise exception.PrecacheError(_first_line(exc)) from exc
        if isinstance(exc, cfg.Error | RuntimeError):  # contradictory options
            raise exception.ConfigError(f'oslo.messaging: {_first_line(exc)}') from exc
        raise


def _is_refused(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, _REFUSED):
            return True
        error = error.__cause__ or error.__context__
    return False


class _Dispatcher(messaging.RPCDispatcher):  # type: ignore[misc]
    """Refuses messages that are no call of an endpoint, as errors of the sender."""

    def __init__(self, endpoints: Sequence[object], broker: str) -> None:
        super().__init__(list(endpoints), ContextSerializer(), messaging.DefaultRPCAccessPolicy)
        self._broker = broker
        self._senders = wire.Senders(LOG)

    def dispatch(self, incoming: Any) -> Any:
        try:
            method, version = _called(incoming)
            self._refuse_unknown(method, version)
            return super().dispatch(incoming)
        except (
            exception.InvalidInput,
            messaging.NoSuchMethod,
            messaging.UnsupportedVersion,
        ) as exc:
            served = ', '.join(type(each).__name__ for each in self.endpoints)
            message = incoming.message if isinstance(incoming.message, dict) else {}
            called = wire.shown(message.get('method'))
            self._senders.refused(f'a call of {called}', f'{self._broker}, by {served}', exc)
            raise messaging.ExpectedException from exc

    def _refuse_unknown(self, method: str, version: str) -> None:
        """Refuse unknown methods, before oslo.messaging sends heartbeats for them."""
        asked, is_compatible = _version(version), False
        for endpoint in self.endpoints:
            served = _version(getattr(endpoint, 'target', Endpoint.target).version)
            if served[0] == asked[0] and served[1] >= asked[1]:
                is_compatible = True
                if inspect.isfunction(getattr(type(endpoint), method, None)):
                    return
        if is_compatible:
            raise messaging.NoSuchMethod(method)
        raise messaging.UnsupportedVersion(version, method=method)


def _called(incoming: Any) -> tuple[str, str]:
    """Read method and version of a call; refuse a message that would fail later.

    :raises nova_precache.exception.InvalidInput: a part of the message is invalid
    """
    message = wire.mapping(incoming.message, 'message')
    method, version = message.get('method'), message.get('version', '1.0')
    if not isinstance(method, str) or not _METHOD.fullmatch(method):
        raise exception.InvalidInput(f'method: {wire.shown(method)} is no name')
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        raise exception.InvalidInput(f'version: {wire.shown(version)} is none')
    if message.get('namespace') is not None:
        raise exception.InvalidInput('namespace: none is served')
    if not {'self', 'ctxt'}.isdisjoint(wire.mapping(message.get('args', {}), 'args')):
        raise exception.InvalidInput('args: self and ctxt are not for the sender to choose')
    seconds = incoming.client_timeout
    is_number = type(seconds) in (int, float)
    if seconds is not None and not (is_number and 0 <= seconds <= _MONITOR_MAX_SECONDS):
        raise exception.InvalidInput(f'timeout: {wire.shown(seconds)} cannot be one')
    return method, version


class Server:
    """Serves endpoints on a topic, each call in its own thread."""

    def __init__(
        self, transport: 'Transport', topic: str, name: str, endpoints: Sequence[object]
    ) -> None:
        self._transport = transport
        self._new_server = functools.partial(
            rpc_server.RPCServer,
            transport.serving,
            messaging.Target(exchange=transport.exchange, topic=topic, server=name),
            _Dispatcher(endpoints, transport.outage.name),
        )
        self._lock = threading.Lock()
        self._serving: Any = None
        self._stopping = threading.Event()

    def start(self) -> None:
        """Start to serve; wait for the broker as long as needed, or until stopped.

        Failures are retried after growing pauses.
        """
        attempts = tenacity.Retrying(
            wait=tenacity.wait_exponential(START_PAUSE_SECONDS, max=LONGEST_START_PAUSE_SECONDS),
            sleep=tenacity.sleep_using_event(self._stopping),
            stop=tenacity.stop_when_event_set(self._stopping),
            before_sleep=self._log_failure,
            retry_error_callback=lambda state: None,  # stopped before it was started
        )
        attempts(self._try_to_start)

    def start_in_background(self) -> None:
        """Start to serve when the broker can be reached, without blocking the caller."""
        threading.Thread(target=self.start, name='rpc-server-start', daemon=True).start()

    def stop(self) -> None:
        """Stop taking messages and wait for the calls being served."""
        with self._lock:
            self._stopping.set()
            serving = self._serving
        if serving is not None:
            _close(serving)

    def _try_to_start(self) -> None:
        server = self._new_server()
        with self._transport.noted(), _own_errors('an RPC server'):
            server.start()
        with self._lock:
            self._serving = server
            is_late = self._stopping.is_set()
        if is_late:
            _close(server)

    def _log_failure(self, state: tenacity.RetryCallState) -> None:
        error = None if state.outcome is None else state.outcome.exception()
        if error is not None:
            LOG.error('An RPC server could not be started', exc_info=error)


def _close(server: Any) -> None:
    server.stop()
    server.wait()


class Transport:
    """The connections to one broker, with separate ones for calls and for servers.

    When a broker is lost, oslo.messaging reconnects an idle connection and blocks its users
    until then: for a server's answers without a limit, so that a call on the same connections
    that should fail soon would wait until the broker is back. Probes have their own
    connections, too: a connection that is in use all the time is never reconnected.

    :param hosts: number of hosts of the broker's cluster in its URL
    :param outage: logs when the broker is unavailable
    """

    def __init__(
        self,
        calling: messaging.Transport,
        serving: messaging.Transport,
        exchange: str | None,
        hosts: int,
        outage: outages.Outage,
        probing: messaging.Transport,
    ) -> None:
        self.calling = calling
        self.serving = serving
        self.exchange = exchange
        self.hosts = hosts
        self.outage = outage
        self._lock = threading.Lock()
        self._calls = 0
        self._is_retired = False
        self._unanswered: list[futures.Future[Any]] = []
        self._probing = probing
        self._probe: futures.Future[None] | None = None
        self._failed_probes = self._pauses = 0
        # In-memory brokers are always available.
        self._is_ready_for_replies = exchange is not None

    def client(
        self, topic: str, version_cap: str | None = None, retries: int | None = None
    ) -> Client:
        """Create a client; ``retries`` None retries a dead broker until the call is abandoned."""
        return Client(self, topic, version_cap, retries)

    def nova_client(self, topic: str, version_cap: str | None, retries: int | None) -> Client:
        """Create a client of a stock Nova's service."""
        return Client(self, topic, version_cap, retries, NovaContextSerializer())

    def server(self, topic: str, name: str, endpoints: Sequence[object]) -> Server:
        return Server(self, topic, name, endpoints)

    def send(
        self, ctxt: context.RequestContext, what: str, seconds: float, work: Callable[[], T]
    ) -> T:
        """Call or cast; abandon it after ``seconds``, though it may still be sent later.

        :raises nova_precache.exception.CellUnreachable: the broker did not take the message
        """
        self._refuse_more_unanswered(what)
        sent = _in_background(ctxt, functools.partial(self._use, work))
        with self.noted(), _own_errors(what):
            try:
                return _wait(sent, seconds)
            finally:
                if not sent.done():
                    with self._lock:
                        self._unanswered.append(sent)

    def _refuse_more_unanswered(self, what: str) -> None:
        """Refuse messages to a silent broker: each message that it does not take holds a thread."""
        with self._lock:
            self._unanswered = [each for each in self._unanswered if not each.done()]
            if len(self._unanswered) >= MOST_UNANSWERED:
                raise exception.CellUnreachable(
                    f'{what} is not sent: the broker has taken none of the last '
                    f'{MOST_UNANSWERED} messages'
                )

    def make_ready_for_replies(self) -> None:
        """Create the reply queue by a probe, since oslo.messaging creates it at the first call.

        :raises nova_precache.exception.CellUnreachable: the broker is unavailable
        """
        if not self._is_ready_for_replies:
            self.probe()

    def probe(self, seconds: float = SEND_SECONDS) -> None:
        """Send a message that no server reads, and check that the broker takes it.

        :raises nova_precache.exception.CellUnreachable: it did not take it in time
        """
        if self.exchange is None:
            with self.noted():
                _wait(self._begin_probe(), seconds)

    def probe_in_background(self, topic: str) -> None:
        """Cast a ping, which a server of the topic receives while the broker delivers messages.

        Servers of every release know it. The result is recorded for the log. Call this every
        few seconds: after failures it skips some calls, so that oslo.messaging can reconnect.
        """
        with self._lock:
            is_pausing = self._pauses > 0
            self._pauses -= int(is_pausing)
        if not is_pausing:
            self._begin_probe(topic)

    def _begin_probe(self, topic: str = PROBE_TOPIC) -> 'futures.Future[None]':
        """Start a probe unless one is running, which may last until the broker is back."""
        with self._lock:
            if self._probe is None or self._probe.done():
                work = functools.partial(self._use, functools.partial(self._send_probe, topic))
                self._probe = _in_background(context.admin_context(), work)
            return self._probe

    def _send_probe(self, topic: str) -> None:
        try:
            with self.noted(), _own_errors('ping'):
                # First a cast, which fails at a dead broker.
                self._prober(topic).cast(context.admin_context(), 'ping')
                if not self._is_ready_for_replies:
                    with contextlib.suppress(messaging.MessageUndeliverable):
                        prober = self._prober(PROBE_TOPIC, must_arrive=True)
                        prober.call(context.admin_context(), 'ping')
                    self._is_ready_for_replies = True
        except Exception:
            with self._lock:
                self._failed_probes += 1
                self._pauses = min(2**self._failed_probes - 1, MOST_PAUSES)
            raise
        with self._lock:
            self._failed_probes = self._pauses = 0

    def _prober(self, topic: str, *, must_arrive: bool = False) -> messaging.RPCClient:
        return messaging.get_rpc_client(
            self.calling if must_arrive else self._probing,
            messaging.Target(exchange=self.exchange, topic=topic, version='1.0'),
            serializer=ContextSerializer(),
            retry=connect_retries(0, self.hosts),
            transport_options=messaging.TransportOptions(at_least_once=must_arrive),
        )

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Record for the log whether the broker could be used."""
        try:
            yield
        except (exception.CellUnreachable, exception.ConfigError) as exc:
            self.outage.began(exc)
            raise
        else:
            self.outage.over()

    def _use(self, work: Callable[[], T]) -> T:
        with self.used_to_call():
            return work()

    @contextlib.contextmanager
    def used_to_call(self) -> Iterator[None]:
        """Keep the connections open for one call.

        :raises nova_precache.exception.PrecacheError: the transport is retired
        """
        with self._lock:
            if self._is_retired:
                raise exception.PrecacheError('The broker is no longer used')
            self._calls += 1
        try:
            yield
        finally:
            with self._lock:
                self._calls -= 1
                is_over = self._is_retired and self._calls == 0
            if is_over:
                self._close()

    def retire(self) -> None:
        """Refuse further calls, and close the connections after the last answer.

        The servers must have been stopped.
        """
        with self._lock:
            self._is_retired = True
            is_over = self._calls == 0
        if is_over:
            self._close()

    def _close(self) -> None:
        """Close in the background: closing a connection to a dead broker may take long."""
        if self.exchange is not None:
            return  # in memory: closing one transport empties the exchanges of all
        for raw in (self.calling, self.serving, self._probing):
            threading.Thread(target=raw.cleanup, name='transport-close', daemon=True).start()


def _in_background(ctxt: context.RequestContext, work: Callable[[], T]) -> 'futures.Future[T]':
    """Run work in its own thread, which logs under the ids of a context."""
    result: futures.Future[T] = futures.Future()

    def run() -> None:
        ctxt.update_store()
        try:
            result.set_result(work())
        except BaseException as exc:  # noqa: BLE001 - raised again in the waiting thread
            result.set_exception(exc)

    threading.Thread(target=run, name='rpc-send', daemon=True).start()
    return result


def _wait(result: 'futures.Future[T]', seconds: float) -> T:
    if not futures.wait([result], seconds).done:
        raise exception.CellUnreachable(f'no answer from the broker in {seconds:g} s')
    return result.result()


def connect(conf: cfg.ConfigOpts, url: str | None = None, whose: str = OWN_BROKER) -> Transport:
    """Create the transport for ``url`` or ``[DEFAULT] transport_url``; it connects on first use.

    :param whose: shown in the log beside the URL
    :raises nova_precache.exception.ConfigError: the URL cannot be used
    """
    try:
        parsed = messaging.TransportURL.parse(conf, url)
        # Each connects on first use.
        calling, serving, probing = (
            messaging.get_rpc_transport(conf, url=parsed, allowed_remote_exmods=[])
            for _ in range(3)
        )
    except (messaging.InvalidTransportURL, messaging.DriverLoadFailure, ValueError) as exc:
        raise exception.ConfigError(f'transport_url: {type(exc).__name__}') from None
    except RuntimeError as exc:  # its text names options of the driver
        raise exception.ConfigError(f'[oslo_messaging_rabbit] {exc}') from exc
    outage = outages.Outage(f'Broker {describe_url(conf, str(parsed))} ({whose})')
    hosts = max(1, len(parsed.hosts))
    return Transport(calling, serving, exchange_of(parsed), hosts, outage, probing)


def connect_own(conf: cfg.ConfigOpts) -> Transport:
    """Connect to ``[DEFAULT] transport_url``; raise if its broker refuses this service.

    An unavailable broker is no error: the service waits for it in the background.

    :raises nova_precache.exception.ConfigError: the URL cannot be used, or the broker refuses
        the user, the password or the virtual host
    """
    transport = connect(conf)
    # On separate connections: a server such as uWSGI may fork before it uses those above.
    trial = connect(conf)
    trial.outage = transport.outage
    try:
        trial.probe(REFUSAL_SECONDS)
    except exception.BrokerRefused as exc:
        place = describe_url(conf, conf.transport_url)
        raise exception.ConfigError(f'{OWN_BROKER} ({place}) is refused: {exc}') from exc
    except exception.CellUnreachable:
        pass  # already logged as an outage
    finally:
        trial.retire()
    return transport


def version_cap(option: str, pin: str | None, newest: str, oldest: str = '0.0') -> str | None:
    """Read a pin in ``[upgrade_levels]``: the highest version to send, None for any.

    :param newest: the version of this release
    :param oldest: the lowest version that works
    :raises nova_precache.exception.ConfigError: the pin is no version, or out of range
    """
    if not pin or pin == AUTO:
        return None
    shown = f'[upgrade_levels] {option} = {pin}'
    if not re.fullmatch(r'[0-9]{1,5}\.[0-9]{1,5}', pin):
        raise exception.ConfigError(f'{shown} is neither {AUTO} nor a version such as {newest}')
    if _version(pin) < _version(oldest):
        raise exception.ConfigError(f'{shown} is too low, the oldest version is {oldest}')
    if _version(pin)[0] > _version(newest)[0]:
        raise exception.ConfigError(f'{shown} is not known, the newest version is {newest}')
    return pin


def _version(text: str) -> tuple[int, int]:
    major, minor = text.split('.')
    return int(major), int(minor)


def exchange_of(url: messaging.TransportURL) -> str | None:
    """Return the exchange of an in-memory URL; None means the configured one."""
    if url.transport not in ('fake', 'kombu+memory'):
        return None
    return f'nova-precache-{url.virtual_host or "api"}'


def describe_url(conf: cfg.ConfigOpts, url: str) -> str:
    """Return a URL without users, passwords and query.

    In an unquoted password, a separator makes the rest look like a host or a virtual host; a
    URL that may contain one is shown as ``<unreadable>``.
    """
    if not url:
        return ''  # oslo.messaging would read [DEFAULT] transport_url instead
    try:
        if not _is_quoted(url):
            return UNREADABLE
        parsed = messaging.TransportURL.parse(conf, url)
    except (messaging.InvalidTransportURL, ValueError):
        return UNREADABLE
    parsed.hosts = [messaging.TransportHost(host.hostname, host.port) for host in parsed.hosts]
    parsed.query = {}
    return str(parsed)


def _is_quoted(url: str) -> bool:
    """Return whether no ``@`` follows text that cannot belong to a user or a password."""
    netloc = urllib.parse.urlsplit(url).netloc
    have_users = ['@' in host for host in netloc.split(',')]
    return netloc.count('@') == url.count('@') and have_users == sorted(have_users, reverse=True)


def _first_line(exc: Exception) -> str:
    return str(exc).splitlines()[0] if str(exc) else type(exc).__name__
