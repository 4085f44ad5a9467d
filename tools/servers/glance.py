# SPDX-License-Identifier: Apache-2.0
"""What a service is told so that it asks Keystone, and a Glance that does."""

import pathlib
import shutil

from nova_precache.standalone import glance as glance_server
from tools.servers import keystone as keystone_server

_CREDENTIALS = """
auth_type = password
auth_url = {url}
username = {user.name}
password = {user.password}
project_name = {user.project}
user_domain_id = default
project_domain_id = default
region_name = {region}
"""
_KEYSTONE_AUTHTOKEN = """
[keystone_authtoken]
www_authenticate_uri = {url}
service_token_roles_required = true
# Nobody's word is kept, so that a revoked token is found out at once.
token_cache_time = -1
"""


def credentials(keystone: keystone_server.KeystoneServer, user: keystone_server.User) -> str:
    """Give the options by which a service logs in."""
    return _CREDENTIALS.format(url=keystone.url, user=user, region=keystone_server.REGION)


def middleware(keystone: keystone_server.KeystoneServer, user: keystone_server.User) -> str:
    """Give the section by which a service asks Keystone about tokens."""
    section = _KEYSTONE_AUTHTOKEN.format(url=keystone.url).rstrip()
    return section + credentials(keystone, user)


class GlanceUnderKeystone(glance_server.GlanceServer):
    """A Glance that knows nobody but by a token of Keystone's.

    :param policy: a file of rules that differ from Glance's own
    """

    def __init__(
        self,
        directory: pathlib.Path,
        keystone: keystone_server.KeystoneServer,
        policy: pathlib.Path | None = None,
    ) -> None:
        super().__init__(directory, check_formats=False)
        self._keystone = keystone
        self._policy = policy
        self._user = keystone.make_user('service', project='service')

    def _write_configuration(self, home: pathlib.Path) -> None:
        super()._write_configuration(home)
        (self.directory / 'policy.yaml').write_text('')
        if self._policy is not None:
            rules = self.directory / 'policy.d'
            rules.mkdir(exist_ok=True)
            shutil.copy(self._policy, rules)
        path = self.directory / 'glance-api.conf'
        open_to_all = path.read_text()
        assert '\nflavor =\n' in open_to_all
        guarded = open_to_all.replace('\nflavor =\n', '\nflavor = keystone\n')
        guarded = guarded.replace('[DEFAULT]\n', '[DEFAULT]\ndebug = true\n', 1)
        path.write_text(guarded + middleware(self._keystone, self._user))
