# SPDX-License-Identifier: Apache-2.0
"""A pytest of its own in which every thread is eventlet's: ``python -m tests.under_eventlet``.

It runs tests of what the API and the conductor do that have threads, locks and waits.
Arguments take the place of these paths.
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


def main() -> int:
    os.environ[backend.VARIABLE] = backend.Backend.EVENTLET
    backend.choose_by_environment()
    import pytest  # only now: it imports what has threads

    ignored = [f'--pythonwarnings=ignore:{text}:DeprecationWarning' for text in DEPRECATIONS]
    ignored.append(f'--pythonwarnings=ignore:{UNCLOSED}:ResourceWarning')
    return pytest.main([*ignored, *(sys.argv[1:] or TESTS)])


if __name__ == '__main__':
    sys.exit(main())
