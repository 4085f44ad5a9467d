# SPDX-License-Identifier: Apache-2.0
"""The WSGI application for uwsgi, gunicorn and the like: ``nova_precache.wsgi.api:application``.

It reads the default configuration files, or the one named by the environment variable
``NOVA_PRECACHE_CONFIG_FILE``.
"""

import os

from nova_precache import backend

_named = os.environ.get('NOVA_PRECACHE_CONFIG_FILE')
CONFIG_FILES = [_named] if _named else None
backend.choose_by_files(CONFIG_FILES)

from nova_precache.wsgi import foreign  # noqa: E402 - it imports modules that use threads

application = foreign.build(CONFIG_FILES)
