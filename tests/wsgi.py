# SPDX-License-Identifier: Apache-2.0
"""The API under uwsgi, by the file that operators get."""

import os
import pathlib
import re
import sys

from nova_precache import backend

BIN = pathlib.Path(sys.executable).parent
UWSGI_INI = pathlib.Path(__file__).parents[1] / 'etc' / 'nova-precache' / 'uwsgi.ini'
WORKERS = 2


def uwsgi(directory: pathlib.Path, address: str) -> list[str]:
    """Take the shipped file, change its address and how many processes it has, give the command.

    :param address: host and port
    """
    text = UWSGI_INI.read_text()
    for name, value in (('http-socket', address), ('processes', str(WORKERS))):
        text, count = re.subn(rf'(?m)^{name} = .*$', f'{name} = {value}', text)
        assert count == 1, name
    made = directory / 'uwsgi.ini'
    made.write_text(text)
    return [str(BIN / 'uwsgi'), '--ini', str(made)]


def environment(configuration: pathlib.Path) -> dict[str, str]:
    """Return the environment of the application in a server."""
    return {
        **os.environ,
        'NOVA_PRECACHE_CONFIG_FILE': str(configuration),
        backend.VARIABLE: '',
    }
