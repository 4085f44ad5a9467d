# SPDX-License-Identifier: Apache-2.0
"""Start the parts of a command, wait for a signal and stop them."""

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
    """A part that a command runs."""

    def start(self) -> None:
        """Start, and return."""

    def stop(self) -> None:
        """Stop, and return when it has ended."""


def read_configuration(
    arguments: Sequence[str],
    cli_options: Sequence[cfg.Opt] = (),
    default_config_files: list[str] | None = None,
) -> cfg.ConfigOpts:
    """Read the command line and the configuration files, and set up logging.

    :param default_config_files: read unless the command line names files; None: those in the
        usual places
    """
    return configuration.set_up_process(
        arguments,
        default_config_files,
        cli_options=cli_options,
        use_stderr=True,  # keeps the log apart from the command's output
    )


def run(
    parts: Sequence[Running],
    conf: cfg.ConfigOpts | None = None,
    ready: Callable[[], None] | None = None,
) -> None:
    """Start the parts in order, wait for SIGTERM or SIGINT, stop them in reverse.

    :param conf: reloaded at each SIGHUP
    :param ready: called when every part has started
    """
    stopping = threading.Event()
    on_stop_signals(stopping.set)
    LOG.info('Concurrency backend: %s', backend.current())
    if conf is not None:
        reload_on_sighup(conf)
    started: list[Running] = []
    try:
        for part in parts:
            part.start()
            started.append(part)
        if ready is not None:
            ready()
        systemd.notify_once()
        # Under eventlet a signal does not wake the wait, so it checks after each timeout.
        while not stopping.wait(SIGNAL_SECONDS):
            pass
    finally:
        for part in reversed(started):
            _stop(part)


def _stop(part: Running) -> None:
    try:
        part.stop()
    except Exception:
        LOG.exception('Stopping %s failed', type(part).__name__)


def on_stop_signals(call: Callable[[], None]) -> None:
    """Register a function to be called, in its own thread, at the first SIGTERM or SIGINT."""

    def wake() -> None:
        call()

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
        # Not in this thread: the interrupted code may hold a lock that the call takes.
        _thread.start_new_thread(wake, ())  # eventlet takes a method for one of a Thread

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def reload_on_sighup(conf: cfg.ConfigOpts) -> None:
    """Reload the configuration files at each SIGHUP; concurrent reloads run one by one."""
    turns = threading.Lock()

    def read() -> None:
        with turns:
            try:
                configuration.read_again(conf)
            except (cfg.Error, OSError) as exc:
                LOG.error(
                    'Reloading the configuration failed, keeping the previous values: %s', exc
                )

    def hang_up(number: int, frame: FrameType | None) -> None:
        _thread.start_new_thread(read, ())  # as above

    signal.signal(signal.SIGHUP, hang_up)


def exit_with(main: Callable[[], int]) -> None:
    """Run a command and exit, even if threads still wait for a broker or a long call."""
    try:
        status = main()
    except (exception.PrecacheError, cfg.Error) as exc:
        print(exc, file=sys.stderr)
        status = 1
    except Exception:
        # Not propagated: the interpreter would wait for the threads before it ends.
        LOG.exception('The command failed')
        status = 1
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    if threading.active_count() > 1:
        os._exit(status)  # libraries join even their daemon threads at exit
    sys.exit(status)
