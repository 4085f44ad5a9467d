# SPDX-License-Identifier: Apache-2.0
"""[upgrade_levels]: highest RPC versions to send while releases are mixed."""

from oslo_config import cfg

GROUP = cfg.OptGroup('upgrade_levels', title='RPC version pins')

OPTIONS = [
    cfg.StrOpt(
        'compute',
        help="""
Highest version of the compute RPC API to send, such as 1.0; read by conductors
and by the API, which refuses requests under ``/v1`` that no compute could be
called for. A task that needs a higher version ends ``unsupported``, without a
call. ``auto`` has the same effect as unset: a task that an older compute does
not support ends ``unsupported`` on that compute. Names of releases are not
accepted. With ``[image_cache] compute_backend = nova`` it is the version of
Nova's compute RPC API, such as 5.4, which is the oldest that caches images.
""",
    ),
    cfg.StrOpt(
        'conductor',
        help="""
Highest version of the conductor RPC API to send; the lowest is 1.0. Read by the
API and by computes. Below 1.5 a compute sends each kind of news as a message of
its own. ``auto`` has the same effect as unset.
""",
    ),
]
