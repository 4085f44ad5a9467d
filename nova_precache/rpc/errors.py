# SPDX-License-Identifier: Apache-2.0
"""Translate errors of oslo.messaging, and errors that another process sent."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import amqp
import kombu.exceptions
import oslo_messaging as messaging
from oslo_config import cfg

from nova_precache import exception, outages, wire

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


@contextlib.contextmanager
def translate_errors(what: str) -> Iterator[None]:
    """Translate errors of oslo.messaging; ``what`` is the call or cast."""
    try:
        yield
    except messaging.MessagingTimeout as exc:
        raise TimeoutError(str(exc)) from exc
    except exception.PrecacheError:
        raise
    except messaging.RPCVersionCapError as exc:
        raise exception.VersionUnsupported(
            f'{what} is above the pinned version {exc.version_cap}'
        ) from exc
    # The in-memory driver raises these directly.
    except (messaging.UnsupportedVersion, messaging.NoSuchMethod) as exc:
        raise exception.VersionUnsupported(
            f'{what} is not supported by the called service'
        ) from exc
    except Exception as exc:
        if isinstance(exc, _NO_CONNECTION):
            kind = exception.BrokerRefused if _is_refused(exc) else exception.CellUnreachable
            raise kind(outages.first_line(exc)) from exc
        if isinstance(exc, messaging.MessagingException):
            raise exception.PrecacheError(outages.first_line(exc)) from exc
        if isinstance(exc, cfg.Error | RuntimeError):  # contradictory options
            raise exception.ConfigError(f'oslo.messaging: {outages.first_line(exc)}') from exc
        raise


def _is_refused(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, _REFUSED):
            return True
        error = error.__cause__ or error.__context__
    return False


def read_answer(call: Callable[[], Any], what: str) -> Any:
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
        return exception.VersionUnsupported(f'{what} is not supported by the called service')
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
