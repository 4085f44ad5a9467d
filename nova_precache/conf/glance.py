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
URL of the image service. On a compute it is the site's own Glance and takes
precedence over the endpoint that the conductor names. Unset on the API and the
conductor, the service catalog tells.
""",
    ),
    cfg.ListOpt(
        'allowed_endpoints',
        help="""
On a compute: the URLs of image services to which a call may send it. A call that
names another one is refused, and no request is made. Without this option and
``endpoint_override``, a process that can publish to the broker of the cell chooses
where the compute sends its token and reads images from. Name the endpoint of the
service catalog here. Case, default ports, a slash at the end and ``/v2`` make no difference;
everything else does.
""",
    ),
    cfg.StrOpt('region_name', help='Region whose image service is taken from the catalog.'),
    cfg.ListOpt(
        'valid_interfaces',
        default=['internal', 'public'],
        help='Interfaces of the image service, the preferred first.',
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
        help='Seconds without a byte after which a connection to the image service is given up.',
    ),
    cfg.IntOpt(
        'num_retries',
        default=3,
        min=0,
        help='Times that a short request (never a download) to the image service is repeated.',
    ),
]


def library_options() -> list[cfg.Opt]:
    """List the credential and TLS options that keystoneauth1 reads in this group."""
    return (
        loading.get_session_conf_options()
        + loading.get_auth_common_conf_options()
        + loading.get_auth_plugin_conf_options('password')
    )
