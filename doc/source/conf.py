# SPDX-License-Identifier: Apache-2.0
"""How Sphinx builds the documentation; ``tox -e docs`` runs it."""

project = 'nova-precache'
copyright = 'the nova-precache developers'  # noqa: A001 - Sphinx's name
extensions = ['oslo_config.sphinxext', 'oslo_policy.sphinxext']
html_theme = 'alabaster'
html_theme_options = {'fixed_sidebar': True, 'page_width': '72em'}
