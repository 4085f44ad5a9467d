# SPDX-License-Identifier: Apache-2.0
"""Builds the environments of the servers that tests run, before any test waits for one."""

import sys

from nova_precache.standalone import glance
from tests import tempest
from tools.servers import environments, keystone, nova

ENVIRONMENTS = (glance.ENVIRONMENT, keystone.ENVIRONMENT, nova.ENVIRONMENT, tempest.ENVIRONMENT)

if __name__ == '__main__':
    sys.exit(environments.build(ENVIRONMENTS))
