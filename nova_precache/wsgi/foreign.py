# SPDX-License-Identifier: Apache-2.0
"""Build the application for a foreign WSGI server, after its threads were chosen."""

import atexit
import logging
from collections.abc import Sequence

from nova_precache import backend, conf as configuration
from nova_precache.api import auth
from nova_precache.db.engine import schema, timeouts
from nova_precache.wiring import api as wiring_api
from nova_precache.wsgi import server

LOG = logging.getLogger(__name__)


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
    return wiring_api.application(conf, database)
