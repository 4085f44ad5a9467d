# SPDX-License-Identifier: Apache-2.0
"""What the real Glance has of rules, and of URLs that write, told by its own code."""

import dataclasses
import functools
import json
import pathlib
import subprocess

from nova_precache.standalone import glance as glance_server

ROOT = pathlib.Path(__file__).resolve().parents[1]
SHIPPED = ROOT / 'etc' / 'glance' / 'image-precacher.yaml'
ROLE = 'image_precacher'

_ASK = """\
import json
import routes
from glance import policies
from glance.api.v2 import router
from glance.common import config

config.parse_args(args=[], default_config_files=[])
mapper = routes.Mapper()
router.API(mapper)
found = [
    (method, route.routepath)
    for route in mapper.matchlist
    if route.defaults.get('action', 'reject') != 'reject'
    for method in route.conditions['method']
]
rules = [(rule.name, rule.check_str) for rule in policies.list_rules()]
print(json.dumps({'rules': rules, 'routes': found}))
"""


@dataclasses.dataclass(frozen=True)
class GlanceFacts:
    """What one release of Glance is made of.

    :ivar rules: the checks of its policy by name, as they are without a policy file
    :ivar writing: methods and paths of API v2 that are not there to read
    """

    rules: dict[str, str]
    writing: frozenset[tuple[str, str]]


@functools.cache
def facts() -> GlanceFacts:
    """Ask the code of the Glance that tests run.

    :raises nova_precache.standalone.environment.EnvironmentFailed: it is not installed
    """
    python = glance_server.ENVIRONMENT.ensure() / 'bin' / 'python'
    asked = subprocess.run(
        [python, '-W', 'ignore', '-c', _ASK], capture_output=True, text=True, check=True
    )
    told = json.loads(asked.stdout.splitlines()[-1])
    writing = {(method, path) for method, path in told['routes'] if method not in {'GET', 'HEAD'}}
    return GlanceFacts(dict(told['rules']), frozenset(writing))
