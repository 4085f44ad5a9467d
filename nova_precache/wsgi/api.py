# SPDX-License-Identifier: Apache-2.0
"""The WSGI application for uwsgi, gunicorn and the like: ``nova_precache.wsgi.api:application``.

It reads the default configuration files, or the one that the environment
variable ``NOVA_PRECACHE_CONFIG_FILE`` names.
"""

import os

from oslo_log import log

from nova_precache import conf as configuration
from nova_precache import wiring
from nova_precache.api import auth
from nova_precache.db import schema
from nova_precache.wsgi import server


def build() -> server.Application:
    """Build the application from the configuration files.

    :raises nova_precache.exception.ConfigError: noauth2 is set, or the database cannot be used
    """
    named = os.environ.get('NOVA_PRECACHE_CONFIG_FILE')
    conf = configuration.new(config_files=[named] if named else None)
    log.setup(conf, 'nova-precache')
    auth.refuse_foreign_server(conf.api.auth_strategy)
    return wiring.api_application(conf, schema.open_current(conf))


application = build()
