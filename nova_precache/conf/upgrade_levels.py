# SPDX-License-Identifier: Apache-2.0
"""[upgrade_levels]: highest RPC versions to send while releases are mixed."""

from oslo_config import cfg

GROUP = cfg.OptGroup('upgrade_levels', title='RPC version pins')

OPTIONS = [
    cfg.StrOpt(
        'compute',
        help="""
Highest version of the compute RPC API to send, such as 1.0; read by conductors, and
by the API, which refuses under ``/v1`` what no compute could be called for. What needs
a higher one ends ``unsupported``, and no compute is called. ``auto`` is as unset: what
an older compute does not know ends ``unsupported`` there. Names of releases are not
known. With ``[image_cache] compute_backend = nova`` it is the version of Nova's compute
RPC API, such as 5.4, which is the oldest that caches images.
""",
    ),
    cfg.StrOpt(
        'conductor',
        help="""
Highest version of the conductor RPC API to send, such as 1.0, which is the lowest;
read by the API and by computes. ``auto`` is as unset.
""",
    ),
]
