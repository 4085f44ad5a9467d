# SPDX-License-Identifier: Apache-2.0
"""Builds the environments of the servers that tests run, before any test waits for one."""

import logging
import sys
from concurrent import futures

from nova_precache.standalone import glance
from tests import tempest
from tools.servers import keystone, nova

ENVIRONMENTS = (glance.ENVIRONMENT, keystone.ENVIRONMENT, nova.ENVIRONMENT, tempest.ENVIRONMENT)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format='%(message)s')
    with futures.ThreadPoolExecutor(len(ENVIRONMENTS)) as pool:
        building = [pool.submit(each.ensure) for each in ENVIRONMENTS]
    failed = [str(each.exception()) for each in building if each.exception() is not None]
    if failed:
        sys.exit('\n'.join(failed))


if __name__ == '__main__':
    main()
