# SPDX-License-Identifier: Apache-2.0
"""The connections to a message broker, with limits for each wait.

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
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from typing import Any, TypeVar

import oslo_messaging as messaging
from oslo_config import cfg
from oslo_messaging import transport as raw_transport

from nova_precache import context, exception, outages
from nova_precache.rpc import errors, message, shared_connection

T = TypeVar('T')

UNREADABLE = '<unreadable>'
OWN_BROKER = '[DEFAULT] transport_url'
# Limit for sending a message, from the first connection to the broker's confirmation.
SEND_SECONDS = 30.0
# How long a command waits at its start for a broker's refusal.
REFUSAL_SECONDS = 5.0
# Unconfirmed messages to a silent broker before further ones are refused.
MOST_UNANSWERED = 32
# Largest number of probes skipped after failures.
MOST_PAUSES = 12
# No server listens to it.
PROBE_TOPIC = 'precache_probe'
_PROBE: Mapping[str, Mapping[str, object]] = {PROBE_TOPIC: {}}
# The drivers of oslo.messaging that have RPC; the part of a scheme after a + is for theirs.
_BROKERS = frozenset({'rabbit', 'kombu'})
_IN_MEMORY = 'fake'
_MOST_PORT = 65535


class Transport:
    """The connections to one broker, with separate ones for calls and for servers.

    When a broker is lost, oslo.messaging reconnects an idle connection and blocks its users
    until then: for a server's answers without a limit, so that a call on the same connections
    that should fail soon would wait until the broker is back. Probes have their own
    connections, too: a connection that is in use all the time is never reconnected.

    An agent has one transport for all of them, see ``shared_connection``.

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
        self._answered_at: float | None = None
        # In-memory brokers are always available.
        self._is_ready_for_replies = exchange is not None

    def send(
        self, ctxt: context.RequestContext, what: str, seconds: float, work: Callable[[], T]
    ) -> T:
        """Call or cast; abandon it after ``seconds``, though it may still be sent later.

        :raises nova_precache.exception.CellUnreachable: the broker did not take the message
        """
        with self.noted(), errors.translate_errors(what):
            self._refuse_more_unanswered(what)
            sent = _in_background(ctxt, functools.partial(self._use, work))
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
                    f'{what} was not sent: the broker has accepted none of the last '
                    f'{MOST_UNANSWERED} messages'
                )

    def make_ready_for_replies(self, seconds: float) -> None:
        """Create the reply queue by a probe, since oslo.messaging creates it at the first call.

        :raises nova_precache.exception.CellUnreachable: the broker is unavailable
        """
        if not self._is_ready_for_replies:
            self.probe(seconds)

    def probe(self, seconds: float = SEND_SECONDS) -> None:
        """Send a message that no server reads, and check that the broker takes it.

        :raises nova_precache.exception.CellUnreachable: it did not take it in time
        """
        if self.exchange is None:
            with self.noted():
                _wait(self._begin_probe(), seconds)

    def probe_in_background(
        self, *topics: str, arguments: Mapping[str, Mapping[str, object]] | None = None
    ) -> None:
        """Cast pings, which servers of the topics receive while the broker delivers messages.

        Servers of every release know it. The result is recorded for the log. Call this every
        few seconds: after failures it skips some calls, so that oslo.messaging can reconnect.

        :param arguments: of the ping to a topic, if it has any
        """
        with self._lock:
            is_pausing = self._pauses > 0
            self._pauses -= int(is_pausing)
        if not is_pausing:
            self._begin_probe({topic: (arguments or {}).get(topic, {}) for topic in topics})

    def _begin_probe(
        self, pings: Mapping[str, Mapping[str, object]] = _PROBE
    ) -> 'futures.Future[None]':
        """Start a probe unless one is running, which may last until the broker is back."""
        with self._lock:
            if self._probe is None or self._probe.done():
                work = functools.partial(self._use, functools.partial(self._send_probe, pings))
                self._probe = _in_background(context.admin_context(), work)
            return self._probe

    def _send_probe(self, pings: Mapping[str, Mapping[str, object]]) -> None:
        try:
            with self.noted(), errors.translate_errors('ping'):
                # First casts, which fail at a dead broker.
                for topic, arguments in pings.items():
                    self._prober(topic).cast(context.admin_context(), 'ping', **arguments)
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
            serializer=message.ContextSerializer(),
            retry=connect_retries(0, self.hosts),
            transport_options=messaging.TransportOptions(at_least_once=must_arrive),
        )

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Record for the log whether the broker could be used."""
        began_at = self.outage.clock()
        try:
            yield
        except (exception.CellUnreachable, exception.ConfigError) as exc:
            self.outage.began(exc)
            raise
        except TimeoutError:  # the broker took the message, and no server answered
            self._answered_at = max(began_at, self._answered_at or began_at)
            raise
        else:
            self._answered_at = self.outage.clock()
            self.outage.over()

    def why_away(self, silent_seconds: float) -> str | None:
        """Return why the broker cannot be used, None if it can.

        :param silent_seconds: it is away, too, if it has taken no message for so long
        """
        if (why := self.outage.describe()) is not None:
            return why
        age = self._answer_age()
        if age is None:
            return 'not connected yet'
        return f'no answer for {age:.0f} s' if age > silent_seconds else None

    def answered(self, name: str) -> dict[str, float]:
        """Map the name to the seconds since the last answer; empty without one."""
        age = self._answer_age()
        return {} if age is None else {name: age}

    def _answer_age(self) -> float | None:
        at = self._answered_at
        return None if at is None else self.outage.clock() - at

    def _use(self, work: Callable[[], T]) -> T:
        """Keep the connections open during the work.

        :raises nova_precache.exception.PrecacheError: the transport is retired
        """
        with self._lock:
            if self._is_retired:
                raise exception.PrecacheError('The connections to the broker are closed')
            self._calls += 1
        try:
            return work()
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
        for raw in {self.calling, self.serving, self._probing}:
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


def connect(
    conf: cfg.ConfigOpts,
    url: str | None = None,
    whose: str = OWN_BROKER,
    *,
    shares_connections: bool = False,
) -> Transport:
    """Create the transport for ``url`` or ``[DEFAULT] transport_url``; it connects on first use.

    :param whose: shown in the log beside the URL, and in an error
    :param shares_connections: use as few connections as possible, for a process that receives
        little and does not probe its broker
    :raises nova_precache.exception.ConfigError: the URL cannot be used
    """
    if (problem := url_problem(conf, url or conf.transport_url)) is not None:
        raise exception.ConfigError(f'{_option(whose)} {problem}')
    try:
        parsed = messaging.TransportURL.parse(conf, url)
        # Each connects on first use.
        if shares_connections and not is_in_memory(str(parsed)):
            calling = serving = probing = _sharing(conf, parsed)
        else:
            calling, serving, probing = (
                messaging.get_rpc_transport(conf, url=parsed, allowed_remote_exmods=[])
                for _ in range(3)
            )
    except (messaging.InvalidTransportURL, messaging.DriverLoadFailure, ValueError) as exc:
        raise exception.ConfigError(
            f'{_option(whose)} cannot be used: {type(exc).__name__}'
        ) from None
    except RuntimeError as exc:  # its text names options of the driver
        raise exception.ConfigError(f'[oslo_messaging_rabbit] {exc}') from exc
    outage = outages.Outage(f'Broker {describe_url(conf, str(parsed))} ({whose})')
    hosts = max(1, len(parsed.hosts))
    return Transport(calling, serving, exchange_of(parsed), hosts, outage, probing)


def _sharing(conf: cfg.ConfigOpts, url: messaging.TransportURL) -> messaging.Transport:
    driver = shared_connection.SharedConnectionDriver(
        conf, url, default_exchange=conf.control_exchange, allowed_remote_exmods=[]
    )
    return raw_transport.RPCTransport(driver)


def connect_own(conf: cfg.ConfigOpts, *, shares_connections: bool = False) -> Transport:
    """Connect to ``[DEFAULT] transport_url``; raise if its broker refuses this service.

    An unavailable broker is no error: the service waits for it in the background.

    :raises nova_precache.exception.ConfigError: the URL cannot be used, or the broker refuses
        the user, the password or the virtual host
    """
    transport = connect(conf, shares_connections=shares_connections)
    # On separate connections: a server such as uWSGI may fork before it uses those above. An agent
    # is not forked, and the queue for the answers of thousands of trials would stay for a while.
    trial = transport if shares_connections else connect(conf)
    trial.outage = transport.outage
    try:
        trial.probe(REFUSAL_SECONDS)
    except exception.BrokerRefused as exc:
        place = describe_url(conf, conf.transport_url)
        raise exception.ConfigError(f'{OWN_BROKER} ({place}) is refused: {exc}') from exc
    except exception.CellUnreachable:
        pass  # already logged as an outage
    finally:
        if trial is not transport:
            trial.retire()
    return transport


def connect_retries(retries: int | None, hosts: int) -> int | None:
    """Convert retries to those of oslo.messaging, which counts a try of each host.

    :param retries: of the whole list of hosts; None retries for ever
    """
    return None if retries is None else (retries + 1) * hosts - 1


def exchange_of(url: messaging.TransportURL) -> str | None:
    """Return the exchange of an in-memory URL; None means the configured one."""
    if not is_in_memory(url.transport):
        return None
    return f'nova-precache-{url.virtual_host or "api"}'


def _option(whose: str) -> str:
    return whose if whose == OWN_BROKER else f'transport_url of {whose}'


def url_problem(conf: cfg.ConfigOpts, url: str) -> str | None:
    """Return why no driver can use a URL, without its user and password; None if one can."""
    if not url:
        return 'is empty'
    if len(url.split()) != 1:
        return 'contains white space'
    if describe_url(conf, url) == UNREADABLE:
        return 'cannot be parsed; is the password percent-encoded?'
    parsed = messaging.TransportURL.parse(conf, url)
    driver = parsed.transport.partition('+')[0]
    if driver not in _BROKERS | {_IN_MEMORY}:
        return f'has the scheme {parsed.transport[:20]!r}, but must begin with rabbit://'
    for host in parsed.hosts:
        if not host.hostname:
            return 'has no host name before a port or a user'
        if host.port is not None and not 0 < host.port <= _MOST_PORT:
            return f'has a port outside 1 to {_MOST_PORT}'
    return None


def is_in_memory(url: str) -> bool:
    """Return whether a URL names exchanges in the memory of one process instead of a broker."""
    return url.lower().partition(':')[0] in (_IN_MEMORY, 'kombu+memory')


def names_broker(conf: cfg.ConfigOpts, url: str) -> bool:
    """Return whether a valid URL has a host; without one, a driver uses its own machine."""
    return bool(messaging.TransportURL.parse(conf, url).hosts)


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
