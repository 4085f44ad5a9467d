# SPDX-License-Identifier: Apache-2.0
"""A pytest of its own in which every thread is eventlet's: ``python -m tests.under_eventlet``.

It runs tests of what the API and the conductor do that have threads, locks and waits.
Arguments take the place of these paths. Where eventlet does not work, the tests of how it is
refused are run, with native threads.
"""

import os
import sys

from nova_precache import backend

TESTS = (
    'tests/functional/control',
    'tests/unit/api/test_requests.py',
    'tests/unit/conductor',
    'tests/unit/db/test_jobs.py',
    'tests/unit/test_concurrency.py',
    'tests/unit/test_rpc.py',
    'tests/unit/wsgi',
)
# What libraries warn of.
DEPRECATIONS = (
    'Eventlet support is deprecated',
    'Eventlet usages are deprecated',
    "The 'oslo_service.eventlet_backdoor' module usage is deprecated",
    "Using class 'Green",
)
# Its sockets for TLS leave it to the collector to close the one that they were made from.
UNCLOSED = 'unclosed <eventlet.green.ssl.GreenSSLSocket'


# How it is refused where it does not work.
REFUSED = ('tests/unit/test_backend.py',)


def main() -> int:
    if why := backend.why_no_eventlet():
        sys.stderr.write(f'Not under eventlet: {why}\n')
        return _run(*REFUSED)
    os.environ[backend.VARIABLE] = backend.Backend.EVENTLET
    backend.choose_by_environment()
    ignored = [f'--pythonwarnings=ignore:{text}:DeprecationWarning' for text in DEPRECATIONS]
    ignored.append(f'--pythonwarnings=ignore:{UNCLOSED}:ResourceWarning')
    return _run(*ignored, *(sys.argv[1:] or TESTS))


def _run(*arguments: str) -> int:
    import pytest  # only now: it imports what has threads

    return pytest.main([*arguments])


if __name__ == '__main__':
    sys.exit(main())
