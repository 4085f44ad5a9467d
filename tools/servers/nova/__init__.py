# SPDX-License-Identifier: Apache-2.0
"""A stock Nova from its package, in an environment of its own, to be compared with."""

from nova_precache.standalone import environment

VERSION = '34.0.0'
PLACEMENT_VERSION = '16.0.0'
ENVIRONMENT = environment.PythonEnvironment(
    name=f'nova-{VERSION}',
    requirements=(
        f'nova=={VERSION}',
        f'openstack-placement=={PLACEMENT_VERSION}',
        'waitress~=3.0',
    ),
)
