# SPDX-License-Identifier: Apache-2.0
"""WSGI applications for servers such as uwsgi and gunicorn."""
