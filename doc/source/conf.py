# SPDX-License-Identifier: Apache-2.0
"""How Sphinx builds the documentation; ``tox -e docs`` runs it."""

project = 'nova-precache'
copyright = 'the nova-precache developers'  # noqa: A001 - Sphinx's name
extensions = ['openstackdocstheme', 'oslo_config.sphinxext', 'oslo_policy.sphinxext']
highlight_language = 'shell'
html_theme = 'openstackdocs'
# Nothing is loaded from another host; doc/_templates replaces what would be.
html_theme_options = {
    'analytics_tracking_code': '',
    'display_badge': False,
    'sidebar_search': True,
}
templates_path = ['../_templates']
html_static_path = ['../_static']
html_css_files = ['site.css']
html_context = {'to_guide': 'index.html', 'to_api_reference': 'api-ref/index.html'}
