# SPDX-License-Identifier: Apache-2.0
"""Log outages of the services that this process depends on.

Many threads use the same database, broker or image service, and fail together. The log has one
line when an outage begins, further ones after growing pauses, and one when it ends.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable

from nova_precache import exception

LOG = logging.getLogger(__name__)

CALM_SECONDS = 10.0  # before a new outage is logged, so that a flapping service logs less
FIRST_PAUSE_SECONDS = 60.0
LONGEST_PAUSE_SECONDS = 3600.0

_LOGGED = '_logged_as_outage'
_EXPECTED = (exception.PrecacheError, TimeoutError)
# oslo.messaging logs here a notification that it could not send, with any error of the broker.
_NOTIFICATIONS = 'oslo_messaging.notify.messaging'
# Libraries log these at each try. We log each outage once, with the broker's or the database's
# name; at the level DEBUG the messages of the libraries are logged, too.
_REPEATED = {
    'keystonemiddleware.auth_token': ('Unable to validate token: %s',),
    # A connection that is returned to the pool, after its server was killed.
    'sqlalchemy.pool.impl.QueuePool': ('Exception during reset or similar',),
    'oslo_db.sqlalchemy.exc_filters': ('DBAPIError exception wrapped.', 'DB exception wrapped.'),
    # The name that oslo.log uses.
    'oslo.messaging._drivers.impl_rabbit': (
        '[%(connection_id)s] AMQP server on %(hostname)s:%(port)s is unreachable',
        '[%(connection_id)s] AMQP server %(hostname)s:%(port)s closed',
        '[%(connection_id)s] Reconnected to AMQP server',
        'A recoverable connection/channel error occurred',
        'Connection failed: %s (retrying in %s seconds)',
        'Failed to consume message from queue',
        'Failed to declare consumer for topic',
        'Failed to publish message to topic',
        'Unable to connect to AMQP server on',
        'Unexpected error during heartbeat thread processing',
    ),
    'oslo_messaging._drivers.amqpdriver': (
        'Failed to process incoming message, retrying',
        # The connection was lost with a confirmation, so the broker delivers the request again.
        'Discarding RPC request due to failed acknowledge',
        'ignoring duplicate message',
    ),
}


class Outage:
    """A service that may be unavailable, shared by all threads that use it.

    :param name: begins a log line, and holds no password
    :param clock: monotonic, in seconds
    """

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self.clock = clock
        self._lock = threading.Lock()
        self._since: float | None = None
        self._next_line = float('-inf')
        self._pause = 0.0
        self._kinds: set[type[BaseException]] = set()
        self._why = ''

    def began(self, error: BaseException) -> None:
        """Record a failure; log it if it is the first, of a new kind, or after a pause."""
        setattr(error, _LOGGED, True)
        now = self.clock()
        with self._lock:
            is_new_kind = bool(self._kinds) and type(error) not in self._kinds
            self._since = now if self._since is None else self._since
            self._why = first_line(error)
            if now < self._next_line and not is_new_kind:
                return
            away_seconds = now - self._since
            self._kinds.add(type(error))
            self._pause = min(max(FIRST_PAUSE_SECONDS, 2 * self._pause), LONGEST_PAUSE_SECONDS)
            self._next_line = now + self._pause
        lasting = f' for {away_seconds:.0f} s' if away_seconds >= 1 else ''
        LOG.error('%s is unavailable%s: %s', self.name, lasting, first_line(error))

    def over(self, asked_at: float | None = None) -> None:
        """Record that the service answers.

        :param asked_at: by ``clock``; an answer to work that began before the outage is ignored
        """
        if self._since is None:  # nearly always, so without the lock
            return
        now = self.clock()
        with self._lock:
            was_logged, since = bool(self._kinds), self._since
            if since is None or (asked_at is not None and asked_at < since):
                return
            self._since, self._pause = None, 0.0
            self._kinds.clear()
            if was_logged:
                self._next_line = now + CALM_SECONDS
        if was_logged:
            LOG.warning('%s is available again, after %d s', self.name, now - since)

    def describe(self) -> str | None:
        """Describe the outage, None while there is none."""
        with self._lock:
            since, why = self._since, self._why
        return None if since is None else f'unavailable for {self.clock() - since:.0f} s: {why}'


def is_logged(error: BaseException | None) -> bool:
    """Return whether an error, or one of its causes, was recorded as an outage."""
    while error is not None:
        if getattr(error, _LOGGED, False):
            return True
        error = error.__cause__
    return False


def keep_short(handlers: Iterable[logging.Handler]) -> None:
    """Make handlers drop errors already logged as an outage, and repeated lines of libraries.

    So the outermost code of a thread can log every failure with its traceback. If debugging is
    on, these lines are kept at that level, without a traceback. Errors that this service raises
    on purpose, and lost notifications, are logged without a traceback.
    """
    for handler in handlers:
        handler.addFilter(_shorten)


def _shorten(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    repeats = _REPEATED.get(record.name, '\0')
    is_repeated = is_logged(error) or str(record.msg).startswith(repeats)
    if error is not None and (
        is_repeated or isinstance(error, _EXPECTED) or record.name == _NOTIFICATIONS
    ):
        reason = f'{type(error).__name__}: {first_line(error)}'
        record.msg, record.args = f'{record.getMessage()}: {reason}', ()
        record.exc_info = record.exc_text = None
    if not is_repeated:
        return True
    record.levelno, record.levelname = logging.DEBUG, 'DEBUG'
    return logging.getLogger(record.name).isEnabledFor(logging.DEBUG)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its class without a text."""
    return next(iter(str(error).splitlines()), '') or type(error).__name__
