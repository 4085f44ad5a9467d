# SPDX-License-Identifier: Apache-2.0
"""RPC over message brokers, on oslo.messaging.

``transport`` has the connections to a broker, its probes and its URL, and ``shared_connection``
the few of an agent; ``client`` calls and casts; ``server`` serves endpoints; ``message`` has the
context and the version that each message carries; ``errors`` translates those of oslo.messaging
and of the other end.
"""

from nova_precache.rpc.client import Client
from nova_precache.rpc.message import NovaContextSerializer, knows, version_cap
from nova_precache.rpc.server import Endpoint, Server, refuses
from nova_precache.rpc.transport import (
    UNREADABLE,
    Transport,
    connect,
    connect_own,
    connect_retries,
    describe_url,
    is_in_memory,
    names_broker,
    url_problem,
)

__all__ = [
    'UNREADABLE',
    'Client',
    'Endpoint',
    'NovaContextSerializer',
    'Server',
    'Transport',
    'connect',
    'connect_own',
    'connect_retries',
    'describe_url',
    'is_in_memory',
    'knows',
    'names_broker',
    'refuses',
    'url_problem',
    'version_cap',
]
