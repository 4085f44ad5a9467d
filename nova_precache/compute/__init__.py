# SPDX-License-Identifier: Apache-2.0
"""The compute service: runs the driver when a conductor calls, and reports.

``agent`` registers, serves and reports; ``manager`` is the RPC endpoint, ``rpcapi`` its client
side, ``novarpc`` that of a stock nova-compute. ``transfers`` has the running transfers, with
``options`` and ``meter``; ``outcomes`` their results. ``reporter`` is the interface to the
conductors, ``cache_reporter`` reports the cache, ``name`` whether the host name is still ours,
and ``metrics`` is for Prometheus.
"""
