# SPDX-License-Identifier: Apache-2.0
"""[glance]: how the image service is reached."""

from keystoneauth1 import loading
from oslo_config import cfg

GROUP = cfg.OptGroup('glance', title='The image service')

OPTIONS = [
    cfg.URIOpt(
        'endpoint_override',
        schemes=['http', 'https'],
        help="""
URL of the image service. On a compute it is the Glance of the site and takes
precedence over the endpoint that the conductor names. Unset, the API and the
conductor use the service catalog.
""",
    ),
    cfg.ListOpt(
        'allowed_endpoints',
        help="""
URLs of image services that a call may name; used by computes. A call that names
another one is refused without a request to it. Without this option and
``endpoint_override``, a process that can publish to the broker of the cell
chooses where the compute sends its token and reads images from. Name the
endpoint of the service catalog here. Case, default ports, a slash at the end
and ``/v2`` make no difference; everything else does.
""",
    ),
    cfg.StrOpt('region_name', help='Region of the image service in the service catalog.'),
    cfg.ListOpt(
        'valid_interfaces',
        default=['internal', 'public'],
        help='Interfaces of the image service, in order of preference.',
    ),
    cfg.FloatOpt(
        'connect_timeout_seconds',
        default=10,
        min=0.1,
        help='Seconds to wait for a connection to the image service.',
    ),
    cfg.FloatOpt(
        'read_timeout_seconds',
        default=60,
        min=0.1,
        help='Seconds without a byte after which a connection to the image service is closed.',
    ),
    cfg.IntOpt(
        'num_retries',
        default=3,
        min=0,
        help='Number of times that a short request to the image service (never a download) is '
        'retried.',
    ),
]


def library_options() -> list[cfg.Opt]:
    """List the credential and TLS options that keystoneauth1 reads in this group."""
    return (
        loading.get_session_conf_options()
        + loading.get_auth_common_conf_options()
        + loading.get_auth_plugin_conf_options('password')
    )
