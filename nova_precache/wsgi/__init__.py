# SPDX-License-Identifier: Apache-2.0
"""Serve the API over HTTP: in this process, or under uwsgi or gunicorn.

Our own server: ``server`` starts it, ``loop`` serves all connections in one thread,
``connection`` reads a request and sends its answer, ``gateway`` converts both to WSGI. For a
foreign server: ``api`` is the application, built by ``foreign``. ``origins`` refuses requests
that a browser sends for pages of other sites.
"""
