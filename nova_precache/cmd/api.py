# SPDX-License-Identifier: Apache-2.0
"""nova-precache-api: the HTTP API in a process of its own, served by cheroot."""

import sys

from nova_precache import wiring
from nova_precache.cmd import running
from nova_precache.db import schema


def main() -> None:
    running.exit_with(_main)


def _main() -> int:
    conf = running.read_configuration(sys.argv[1:])
    database = schema.open_current(conf)
    running.run([wiring.api_server(conf, database)])
    database.dispose()
    return 0
