# SPDX-License-Identifier: Apache-2.0
"""A Glance that validates tokens with a Keystone."""

import pathlib
import shutil

from nova_precache.standalone import glance as glance_server
from tools.servers import keystone as keystone_server


class GlanceUnderKeystone(glance_server.GlanceServer):
    """A Glance that accepts no caller without a token of Keystone.

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
        without_keystone = path.read_text()
        assert '\nflavor =\n' in without_keystone
        configuration = without_keystone.replace('\nflavor =\n', '\nflavor = keystone\n')
        configuration = configuration.replace('[DEFAULT]\n', '[DEFAULT]\ndebug = true\n', 1)
        path.write_text(configuration + self._keystone.authtoken(self._user))
