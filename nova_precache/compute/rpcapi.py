# SPDX-License-Identifier: Apache-2.0
"""Client side of the compute RPC API.

History:

* 1.0 - ``cache_image``: returns the outcome, or None if the call is no longer current
* 1.1 - ``stop_image``; ``cache_image`` takes ``options``, which a compute of 1.0 ignores
* 1.2 - ``forget_image``; an outcome has ``at_once``
* 1.3 - ``register_again``
* 1.4 - ``cache_image`` takes ``needed``, the kernel and ramdisk of the image
* 1.5 - ``change_image``
* 1.6 - ``remove_image``

``cache_image`` also takes ``asked_by``, and an outcome has ``seconds``: both are for the log.

A new minor version adds methods or arguments; a compute ignores unknown arguments, a
conductor unknown keys of the outcome. A call is sent at the lowest version that supports
it, so that ``[upgrade_levels] compute`` forbids only the calls that it must.
"""

import dataclasses
from collections.abc import Collection
from typing import Any

from nova_precache import context, exception, model, rpc, wire

TOPIC = 'precache_compute'
VERSION = '1.6'
# A caller of the API waits for the answer.
REMOVE_SECONDS = 4.5
REMOVE_SEND_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class CacheImageCall:
    """The arguments of one call, fenced by the epoch; the repr omits the token.

    :ivar needed: the kernel and ramdisk that the image service names for the image now; None:
        it gave no answer, so the compute uses those that it recorded
    :ivar asked_by: the requests that want the job, for the log
    """

    job_id: str
    epoch: int
    image_id: str
    image_endpoint: str | None
    token: str | None = dataclasses.field(default=None, repr=False)
    options: model.TransferOptions = dataclasses.field(default_factory=model.TransferOptions)
    needed: tuple[model.Companion, ...] | None = None
    asked_by: str | None = None


class ComputeAPI:
    """Calls the computes of one cell."""

    def __init__(
        self,
        transport: rpc.Transport,
        version_cap: str | None,
        connect_retries: int,
        timeout_seconds: float,
        monitor_seconds: float,
    ) -> None:
        self._client = rpc.Client(transport, TOPIC, version_cap, connect_retries)
        self._version_cap = version_cap
        self._timeout_seconds = timeout_seconds
        self._monitor_seconds = monitor_seconds

    def why_unsupported(self) -> str | None:
        """Return why ``cache_image`` may not be sent to any compute, None if it may."""
        if self._client.can_send('1.0'):
            return None
        return f'[upgrade_levels] compute = {self._version_cap} is too low for cache_image'

    def cache_image(
        self, ctxt: context.RequestContext, host: str, call: CacheImageCall
    ) -> model.ImageOutcome | None:
        """Request a host to cache an image, and wait for the outcome.

        :returns: None if the compute refused the call as stale
        :raises TimeoutError: no answer in time, or no heartbeat of the call
        :raises nova_precache.exception.CellUnreachable: the cell's broker took no message
        :raises nova_precache.exception.VersionUnsupported: by the pin or by the compute
        :raises nova_precache.exception.InvalidInput: the answer cannot be read
        """
        unsupported = self.why_unsupported()
        if unsupported is not None:
            raise exception.VersionUnsupported(unsupported)
        arguments = dataclasses.asdict(call)
        for name in ('needed', 'asked_by'):
            if arguments[name] is None:
                del arguments[name]
        answer = self._client.call(
            ctxt,
            'cache_image',
            # An older compute would ignore the kernel and still answer "cached".
            '1.4' if call.needed else '1.0',
            server=host,
            timeout_seconds=self._timeout_seconds,
            monitor_seconds=self._monitor_seconds,
            **arguments,
        )
        return None if answer is None else wire.image_outcome(answer)

    def stop_image(
        self,
        ctxt: context.RequestContext,
        host: str,
        job_id: str,
        epoch: int,
        why: model.StopWhy,
        keep_partial: bool = False,
    ) -> bool:
        """Remove a job from its transfer, which ends at once if no other job wants it.

        The pending call of ``cache_image`` returns the outcome.

        :param epoch: of the job's last call; a newer one is not stopped
        :param keep_partial: keep the partial file of a cancelled job for later downloads
        :returns: False if the host does not work on the job
        :raises TimeoutError: no answer in time
        :raises nova_precache.exception.CellUnreachable: the cell's broker took no message
        :raises nova_precache.exception.VersionUnsupported: by the pin or by the compute
        :raises nova_precache.exception.InvalidInput: the answer cannot be read
        """
        job = {'job_id': job_id, 'epoch': epoch}
        return self._ask(
            ctxt, host, 'stop_image', '1.1', **job, why=why.value, keep_partial=keep_partial
        )

    def change_image(
        self,
        ctxt: context.RequestContext,
        host: str,
        job_id: str,
        epoch: int,
        change: model.OptionChange,
    ) -> bool:
        """Change the rate limit and the deadline of a job while its transfer continues.

        :param epoch: of the job's call; no other one is changed
        :returns: False if the host does not work on that call now
        :raises TimeoutError: no answer in time
        :raises nova_precache.exception.CellUnreachable: the cell's broker took no message
        :raises nova_precache.exception.VersionUnsupported: by the pin or by the compute
        :raises nova_precache.exception.InvalidInput: the answer cannot be read
        """
        job = {'job_id': job_id, 'epoch': epoch}
        return self._ask(
            ctxt, host, 'change_image', '1.5', **job, change=dataclasses.asdict(change)
        )

    def forget_image(self, ctxt: context.RequestContext, host: str, image_id: str) -> bool:
        """Request a host to remove the partial download of an image.

        No repetition is needed, whatever the result: the host removes the remains once they are
        too old.

        :returns: whether nothing is left; False: a transfer or a boot uses the file and
            continues from it, or it cannot be removed
        :raises TimeoutError: no answer in time
        :raises nova_precache.exception.CellUnreachable: the cell's broker took no message
        :raises nova_precache.exception.VersionUnsupported: by the pin or by the compute
        :raises nova_precache.exception.StorageError: the host's file system refused
        :raises nova_precache.exception.InvalidInput: the answer cannot be read
        """
        return self._ask(ctxt, host, 'forget_image', '1.2', image_id=image_id)

    def remove_image(
        self,
        ctxt: context.RequestContext,
        host: str,
        image_id: str,
        kept_ids: Collection[str] = (),
    ) -> model.ImageRemoval:
        """Request a host to remove an image from its cache, unless it is used there.

        :param kept_ids: images that stay even if they are the kernel or ramdisk of this one
        :raises TimeoutError: no answer in time; the image may still be removed
        :raises nova_precache.exception.CellUnreachable: the cell's broker took no message
        :raises nova_precache.exception.VersionUnsupported: by the pin or by the compute
        :raises nova_precache.exception.CacheError: some files may be left, for this reason
        :raises nova_precache.exception.InvalidInput: the answer cannot be read
        """
        if not self._client.can_send('1.6'):
            raise exception.VersionUnsupported(
                f'[upgrade_levels] compute = {self._version_cap} is too low for remove_image'
            )
        answer = self._client.call(
            ctxt,
            'remove_image',
            '1.6',
            server=host,
            timeout_seconds=REMOVE_SECONDS,
            send_seconds=REMOVE_SEND_SECONDS,
            image_id=image_id,
            kept_ids=sorted(kept_ids),
        )
        return wire.image_removal(answer)

    def register_again(self, ctxt: context.RequestContext, host: str, agent_id: str) -> None:
        """Request an agent that is not registered for its host to register again; not answered.

        Two agents of one name share a queue: an agent with another id ignores the message.

        :raises nova_precache.exception.CellUnreachable: the cell's broker took no message
        :raises nova_precache.exception.VersionUnsupported: by the pin
        """
        self._client.cast(ctxt, 'register_again', '1.3', server=host, agent_id=agent_id)

    def _ask(
        self, ctxt: context.RequestContext, host: str, method: str, version: str, **arguments: Any
    ) -> bool:
        """Call a method that answers soon, with yes or no."""
        answer = self._client.call(
            ctxt,
            method,
            version,
            server=host,
            timeout_seconds=self._monitor_seconds,
            **arguments,
        )
        return wire.flag(answer, 'the answer')
