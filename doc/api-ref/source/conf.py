# SPDX-License-Identifier: Apache-2.0
"""How Sphinx builds the reference of the REST API; ``tox -e docs`` runs it."""

import pathlib
import sys
from typing import Any

from docutils.parsers import rst

sys.path.insert(0, str(pathlib.Path(__file__).parents[3]))

from tools import api_reference

project = 'nova-precache API'
copyright = 'the nova-precache developers'  # noqa: A001 - Sphinx's name
extensions = ['openstackdocstheme', 'os_api_ref']
highlight_language = 'json'
html_theme = 'openstackdocs'
# Nothing is loaded from another host; doc/_templates replaces what would be.
html_theme_options = {
    'analytics_tracking_code': '',
    'display_badge': False,
    'sidebar_search': True,
}
templates_path = ['../../_templates']
html_static_path = ['../../_static']
html_css_files = ['site.css']
html_context = {'to_guide': '../index.html', 'to_api_reference': 'index.html'}
openstackdocs_auto_name = False


class OperationDirective(rst.Directive):
    """Inserts the section of an operation, or of one of its actions; its content is the prose."""

    required_arguments = 1
    optional_arguments = 1
    option_spec = {'sample': str}  # noqa: RUF012 - as docutils has it
    has_content = True

    def run(self) -> list[Any]:
        name, action = (*self.arguments, None)[:2]
        lines = api_reference.section(name, action, self.options.get('sample'), self.content)
        self.state_machine.insert_input(list(lines), f'operation {name}')
        return []


def setup(app: Any) -> None:
    """Add the directive ``.. operation:: NAME [ACTION]``."""
    app.add_directive('operation', OperationDirective)
