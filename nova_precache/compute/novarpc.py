# SPDX-License-Identifier: Apache-2.0
"""The RPC API of stock nova-compute, from the side that calls: one method of it.

The wire is Nova's: topic, method, arguments, versions and the words of the answer.
"""

from collections.abc import Mapping, Sequence

from nova_precache import context, exception, rpc

TOPIC = 'compute'
# Nova 34 sends the first; the second is the oldest that knows the method.
VERSION = '6.0'
OLDEST_VERSION = '5.4'
# Nova asks its image service nothing without a token; one without Keystone takes any.
NO_TOKEN = 'notused'  # noqa: S105 - what keystoneauth's plugin "none" sends


class NovaComputeAPI:
    """Calls the nova-computes of one cell.

    :param version_cap: as ``[upgrade_levels] compute`` in a nova.conf; None for any
    :param monitor_seconds: without a heartbeat of a call, after which it is lost
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
        self._client = transport.nova_client(TOPIC, version_cap, connect_retries)
        self._version_cap = version_cap
        self._timeout_seconds = timeout_seconds
        self._monitor_seconds = monitor_seconds

    def why_unsupported(self) -> str | None:
        """Tell why ``cache_images`` may be sent to no compute, None when it may."""
        if self._client.can_send(VERSION) or self._client.can_send(OLDEST_VERSION):
            return None
        return f'[upgrade_levels] compute = {self._version_cap} is too low for cache_images'

    def probe(self) -> None:
        """Fail while nothing was sent to a compute, if nothing can be.

        :raises nova_precache.exception.CellUnreachable: the cell's broker takes no message
        """
        self._transport.probe()

    def cache_images(
        self,
        ctxt: context.RequestContext,
        host: str,
        image_ids: Sequence[str],
        token: str | None,
    ) -> Mapping[str, str]:
        """Ask a nova-compute to cache images, one after the other.

        :returns: image id to its word for how that ended, where it gives one

        :raises TimeoutError: no answer in time, or no heartbeat of the call
        :raises nova_precache.exception.CellUnreachable: the broker was lost at this moment
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
