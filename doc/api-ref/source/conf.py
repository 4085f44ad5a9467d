# SPDX-License-Identifier: Apache-2.0
"""How Sphinx builds the reference of the REST API; ``tox -e docs`` runs it."""

project = 'nova-precache: the REST API'
copyright = 'the nova-precache developers'  # noqa: A001 - Sphinx's name
extensions = ['os_api_ref']
html_theme = 'alabaster'
html_theme_options = {'fixed_sidebar': True, 'page_width': '72em'}
html_static_path = ['_static']
html_css_files = ['api-ref.css']
