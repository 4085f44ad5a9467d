# SPDX-License-Identifier: Apache-2.0
"""[api]: the HTTP API."""

from oslo_config import cfg

GROUP = cfg.OptGroup('api', title='The HTTP API')

OPTIONS = [
    cfg.StrOpt(
        'auth_strategy',
        default='keystone',
        choices=[
            ('keystone', 'tokens are validated by keystonemiddleware'),
            ('noauth2', 'every caller is an admin; listens on the loopback only'),
        ],
        help='How callers are authenticated.',
    ),
    cfg.StrOpt('bind_host', default='127.0.0.1', help='Address that nova-precache-api listens on.'),
    cfg.PortOpt('bind_port', default=8774, help='Port that nova-precache-api listens on.'),
    cfg.StrOpt(
        'cert_file',
        help="""
File with the certificate of nova-precache-api, and those that lead to its authority, in
PEM. Set, it speaks TLS only. Of uwsgi, gunicorn or a proxy, TLS is their own.
""",
    ),
    cfg.StrOpt(
        'key_file', help='File with the private key of ``cert_file``, unless it is in there, too.'
    ),
    cfg.IntOpt(
        'threads', default=16, min=1, help='Requests that nova-precache-api serves at once.'
    ),
    cfg.URIOpt(
        'public_endpoint',
        schemes=['http', 'https'],
        help="""
Base URL under which callers reach this API, for links and ``Location`` headers.
Unset, it is what the request and the headers of a proxy say. With noauth2, its host
is also a name by which the API may be called.
""",
    ),
    cfg.IntOpt(
        'max_limit',
        default=1000,
        min=1,
        help='Most items that one page of a list holds.',
    ),
]
