# SPDX-License-Identifier: Apache-2.0
"""Builds the Python environments of servers before they are started."""

import logging
import sys
from collections.abc import Sequence
from concurrent import futures

from nova_precache.standalone import environment


def build(environments: Sequence[environment.PythonEnvironment]) -> int:
    """Build environments in parallel, which takes minutes the first time.

    :returns: an exit status
    """
    logging.basicConfig(level=logging.INFO, format='%(message)s')
    with futures.ThreadPoolExecutor(len(environments)) as pool:
        building = [pool.submit(each.ensure) for each in environments]
    failed = False
    for each in building:
        try:
            each.result()
        except environment.EnvironmentFailed as exc:
            print(exc, file=sys.stderr)
            failed = True
    return int(failed)
