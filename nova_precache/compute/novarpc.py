# SPDX-License-Identifier: Apache-2.0
"""Client side of the RPC API of stock nova-compute: one method of it.

Topic, method, arguments, versions and the words of the answer are Nova's.
"""

from collections.abc import Mapping, Sequence

from nova_precache import context, exception, rpc

TOPIC = 'compute'
# Nova 34 sends the first; the second is the oldest version with the method.
VERSION = '6.0'
OLDEST_VERSION = '5.4'
# Nova does not query its image service without a token; without Keystone, any token will do.
NO_TOKEN = 'notused'  # noqa: S105 - what keystoneauth's plugin "none" sends


class NovaComputeAPI:
    """Calls the nova-computes of one cell.

    :param version_cap: as ``[upgrade_levels] compute`` in a nova.conf; None for any
    :param monitor_seconds: time without a heartbeat after which a call counts as lost
    """

    def __init__(
        self,
        transport: rpc.Transport,
        version_cap: str | None,
        connect_retries: int,
        timeout_seconds: float,
        monitor_seconds: float,
    ) -> None:
        self._transport = transport
        self._client = rpc.Client(
            transport, TOPIC, version_cap, connect_retries, rpc.NovaContextSerializer()
        )
        self._version_cap = version_cap
        self._timeout_seconds = timeout_seconds
        self._monitor_seconds = monitor_seconds

    def why_unsupported(self) -> str | None:
        """Return why ``cache_images`` may not be sent to any compute, None if it may."""
        if self._client.can_send(VERSION) or self._client.can_send(OLDEST_VERSION):
            return None
        return f'[upgrade_levels] compute = {self._version_cap} is too low for cache_images'

    def probe(self) -> None:
        """Check that the broker accepts messages, before anything is sent to a compute.

        :raises nova_precache.exception.CellUnreachable: the cell's broker accepts no message
        """
        self._transport.probe()

    def cache_images(
        self,
        ctxt: context.RequestContext,
        host: str,
        image_ids: Sequence[str],
        token: str | None,
    ) -> Mapping[str, str]:
        """Request a nova-compute to cache images, one after the other.

        :returns: image id to its word for the result, for those images that it answers for

        :raises TimeoutError: no answer in time, or no heartbeat of the call
        :raises nova_precache.exception.CellUnreachable: the broker became unreachable just now
        :raises nova_precache.exception.VersionUnsupported: by the pin or by the compute
        """
        unsupported = self.why_unsupported()
        if unsupported is not None:
            raise exception.VersionUnsupported(unsupported)
        own = context.RequestContext(
            request_id=ctxt.request_id,
            global_request_id=ctxt.global_request_id,
            is_admin=True,
            auth_token=token or NO_TOKEN,
            overwrite=False,
        )
        answer = self._client.call(
            own,
            'cache_images',
            VERSION if self._client.can_send(VERSION) else OLDEST_VERSION,
            server=host,
            timeout_seconds=self._timeout_seconds,
            monitor_seconds=self._monitor_seconds,
            image_ids=list(image_ids),
        )
        words = answer if isinstance(answer, Mapping) else {}
        return {each: words[each] for each in image_ids if isinstance(words.get(each), str)}
