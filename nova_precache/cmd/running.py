# SPDX-License-Identifier: Apache-2.0
"""How a command starts its parts, waits for a signal and stops them."""

import _thread
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Protocol

from oslo_config import cfg
from oslo_service import systemd

from nova_precache import backend, conf as configuration, exception

LOG = logging.getLogger(__name__)

SIGNAL_SECONDS = 1.0


class Running(Protocol):
    """Something that a command runs."""

    def start(self) -> None:
        """Start, and return."""

    def stop(self) -> None:
        """Stop, and return when nothing of it runs any more."""


def read_configuration(
    arguments: Sequence[str],
    cli_options: Sequence[cfg.Opt] = (),
    default_config_files: list[str] | None = None,
) -> cfg.ConfigOpts:
    """Read the command line and the configuration files, and set the logging up.

    :param default_config_files: read unless the command line names files; None looks in
        the usual places
    """
    return configuration.set_up_process(
        arguments,
        default_config_files,
        cli_options=cli_options,
        use_stderr=True,  # what a command prints stays apart from its log
    )


def run(
    parts: Sequence[Running],
    conf: cfg.ConfigOpts | None = None,
    ready: Callable[[], None] | None = None,
) -> None:
    """Start the parts in order, wait for SIGTERM or SIGINT, stop them in reverse.

    :param conf: its files are read again at each SIGHUP
    :param ready: called when every part has started
    """
    LOG.info('Concurrency backend: %s', backend.current())
    stopping = threading.Event()
    on_stop_signals(stopping.set)
    if conf is not None:
        read_again_at_hangup(conf)
    started: list[Running] = []
    try:
        for part in parts:
            part.start()
            started.append(part)
        if ready is not None:
            ready()
        systemd.notify_once()
        # Under eventlet a signal wakes nobody, who then looks only when a time is up.
        while not stopping.wait(SIGNAL_SECONDS):
            pass
    finally:
        for part in reversed(started):
            _stop(part)


def _stop(part: Running) -> None:
    try:
        part.stop()
    except Exception:
        LOG.exception('%s did not stop as it should', type(part).__name__)


def on_stop_signals(call: Callable[[], None]) -> None:
    """Have something called, in a thread of its own, at the first SIGTERM or SIGINT."""

    def wake() -> None:
        call()

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
        # Not from here: whoever was interrupted may hold the lock that this takes.
        _thread.start_new_thread(wake, ())  # eventlet's takes a method for its Thread's

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def read_again_at_hangup(conf: cfg.ConfigOpts) -> None:
    """Have the configuration files read again at each SIGHUP; of two at once, one after another."""
    turns = threading.Lock()

    def read() -> None:
        with turns:
            try:
                configuration.read_again(conf)
            except (cfg.Error, OSError) as exc:
                LOG.error('The configuration stays as it was: %s', exc)

    def hang_up(number: int, frame: FrameType | None) -> None:
        _thread.start_new_thread(read, ())  # as above

    signal.signal(signal.SIGHUP, hang_up)


def exit_with(main: Callable[[], int]) -> None:
    """Run a command and leave, whatever threads still wait for a broker or a long call."""
    try:
        status = main()
    except (exception.PrecacheError, cfg.Error) as exc:
        print(exc, file=sys.stderr)
        status = 1
    except Exception:
        # Not let through: the interpreter would wait for the threads before it ends.
        LOG.exception('The command failed')
        status = 1
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    if threading.active_count() > 1:
        os._exit(status)  # daemons are waited for, too, by the libraries that made them
    sys.exit(status)
