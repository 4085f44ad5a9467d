# SPDX-License-Identifier: Apache-2.0
"""[api]: the HTTP API."""

from oslo_config import cfg

GROUP = cfg.OptGroup('api', title='The HTTP API')

OPTIONS = [
    cfg.StrOpt(
        'auth_strategy',
        default='keystone',
        choices=[
            ('keystone', 'keystonemiddleware validates tokens'),
            ('noauth2', 'every caller is an admin; listens on the loopback only'),
        ],
        help='How callers are authenticated.',
    ),
    cfg.StrOpt('bind_host', default='127.0.0.1', help='Address that nova-precache-api listens on.'),
    cfg.PortOpt('bind_port', default=8774, help='Port that nova-precache-api listens on.'),
    cfg.StrOpt(
        'cert_file',
        help="""
PEM file with the certificate of nova-precache-api and its chain of intermediate
certificates. If set, nova-precache-api accepts TLS connections only. Ignored
under uWSGI or gunicorn, which terminate TLS themselves.
""",
    ),
    cfg.StrOpt(
        'key_file',
        help='File with the private key of ``cert_file``; unset, ``cert_file`` contains it.',
    ),
    cfg.IntOpt(
        'threads',
        default=16,
        min=1,
        help='Number of requests that nova-precache-api serves concurrently.',
    ),
    cfg.URIOpt(
        'public_endpoint',
        schemes=['http', 'https'],
        help="""
Base URL under which callers reach this API, for links and ``Location`` headers.
Unset, it is taken from the request and the headers of a proxy. With noauth2,
requests may also name its host.
""",
    ),
    cfg.IntOpt(
        'max_limit',
        default=1000,
        min=1,
        help='Maximum number of items on one page of a list.',
    ),
]
