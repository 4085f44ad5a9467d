# SPDX-License-Identifier: Apache-2.0
"""Build the application for a foreign WSGI server, after its threads were chosen."""

import atexit
import importlib
import logging
from collections.abc import Sequence

from nova_precache import backend, conf as configuration, model, service_reporter
from nova_precache.api import auth
from nova_precache.db.engine import schema, timeouts
from nova_precache.wiring import api as wiring_api, common
from nova_precache.wsgi import server

LOG = logging.getLogger(__name__)

# Servers that load the application before they fork do so by then.
FIRST_REPORT_SECONDS = 5.0


def build(config_files: Sequence[str] | None) -> server.Application:
    """Build the application from the configuration files; None looks in the usual places.

    :raises nova_precache.exception.ConfigError: noauth2 is set, or the database cannot be used
    """
    conf = configuration.set_up_process(config_files=config_files, program=backend.API)
    LOG.info('Concurrency backend: %s', backend.current())
    auth.refuse_foreign_server(conf.api.auth_strategy)
    database = schema.open_current(conf, timeouts.API)
    # A WSGI server does not notify its application when it stops.
    atexit.register(database.dispose)
    application = wiring_api.application(conf, database)
    reporter = common.new_reporter(conf, database, model.Binary.API, FIRST_REPORT_SECONDS)
    _report_from_workers(reporter)
    atexit.register(reporter.stop)  # runs before that of the database
    return application


def _report_from_workers(reporter: service_reporter.ServiceReporter) -> None:
    """Report from each process that serves, and not from one that only starts the others."""
    try:
        uwsgi = importlib.import_module('uwsgi')  # exists only in its processes
    except ImportError:
        reporter.start_in_workers()
        return
    if uwsgi.worker_id():  # lazy-apps
        reporter.start()
        return
    # uWSGI forks without the interpreter, whose own hooks do not run.
    earlier = getattr(uwsgi, 'post_fork_hook', None)

    def start() -> None:
        if earlier is not None:
            earlier()
        reporter.start()

    setattr(uwsgi, 'post_fork_hook', start)  # noqa: B010 - the server reads it
