# SPDX-License-Identifier: Apache-2.0
"""Read the transport URL of a cell.

It contains a password; a command line is visible in process lists and stored by shells. So the
URL can be read from elsewhere, and it is never printed.
"""

import getpass
import sys

from oslo_config import cfg

from nova_precache import exception, rpc
from nova_precache.cells import templates

OPTION = '--transport-url'
STANDARD_INPUT = '-'
PROMPT = 'Transport URL (not shown): '


def transport_url(conf: cfg.ConfigOpts, given: str | None) -> str:
    """Return the URL from the command line, standard input or the configuration.

    :param given: from the command line; ``-`` is standard input, None the configuration
    :raises nova_precache.exception.InvalidInput: there is none, or it cannot be parsed
    """
    if given is None:
        return _checked(conf, _configured(conf), '[DEFAULT] transport_url')
    if given == STANDARD_INPUT:
        return _checked(conf, _read(), f'{OPTION} {STANDARD_INPUT}')
    return _checked(conf, given, OPTION)


def _configured(conf: cfg.ConfigOpts) -> str:
    found = conf.get_location('transport_url')
    if found is None or found.location is cfg.Locations.opt_default:
        raise exception.InvalidInput(
            f'{OPTION} is not given, and [DEFAULT] transport_url is not set'
        )
    return str(conf.transport_url)


def _read() -> str:
    try:
        text = getpass.getpass(PROMPT) if sys.stdin.isatty() else sys.stdin.read()
    except (EOFError, UnicodeDecodeError):
        text = ''
    lines = text.split()
    if len(lines) != 1:
        raise exception.InvalidInput(
            f'{OPTION} {STANDARD_INPUT} expects the URL as one line on standard input'
        )
    return lines[0]


def _checked(conf: cfg.ConfigOpts, url: str, source: str) -> str:
    if (problem := _problem(conf, url)) is not None:
        raise exception.InvalidInput(f'{source} {problem}')
    return url


def _problem(conf: cfg.ConfigOpts, url: str) -> str | None:
    if names := templates.names(url):
        fields = ', '.join(f'{{{name}}}' for name in sorted(names))
        return f'is a template ({fields}), as only the cells of Nova can have'
    if problem := rpc.url_problem(conf, url):
        return problem
    if rpc.is_in_memory(url):
        # Only standalone has such cells: no other process can reach them.
        is_standalone = rpc.is_in_memory(conf.transport_url)
        return None if is_standalone else 'is in the memory of one process; it must name a broker'
    return None if rpc.names_broker(conf, url) else 'names no host'
