# SPDX-License-Identifier: Apache-2.0
"""The compute's RPC endpoint: fences and joins calls, and ends each with an outcome."""

import functools
import logging
from collections.abc import Callable
from typing import Any

from nova_precache import context, exception, model, rpc, shown, wire
from nova_precache.compute import (
    name as compute_name,
    outcomes,
    reporter,
    rpcapi,
    transfer_log,
    transfers,
)
from nova_precache.image import service
from nova_precache.transfer_control import Control
from nova_precache.virt import driver as virt_driver

LOG = logging.getLogger(__name__)

ImagesFor = Callable[[str | None, str | None, Callable[[], str | None]], service.ImageService]
"""Makes an image service of an endpoint, a token, and a way to fetch a fresh token."""


class ComputeManager(rpc.Endpoint, version=rpcapi.VERSION):
    """Serves ``rpcapi.ComputeAPI``; each call blocks a thread of its own."""

    def __init__(
        self,
        name: compute_name.Name,
        driver: virt_driver.ComputeDriver,
        conductor: reporter.Reporter,
        images_for: ImagesFor,
        running: transfers.Transfers,
        measured: Callable[[transfers.Work], transfers.Work] = lambda work: work,
        cache_changed: Callable[[], None] = lambda: None,
    ) -> None:
        """Build the endpoint.

        :param cache_changed: called after files were removed from the cache
        """
        self._name = name
        self._host = name.host
        self._driver = driver
        self._driver_name = type(driver).__name__
        self._conductor = conductor
        self._images_for = images_for
        self._transfers = running
        self._measured = measured
        self._cache_changed = cache_changed

    def cache_image(
        self,
        ctxt: context.RequestContext,
        job_id: object = None,
        epoch: object = None,
        image_id: object = None,
        image_endpoint: object = None,
        token: object = None,
        options: object = None,
        needed: object = None,
        asked_by: object = None,
        **unknown: Any,
    ) -> model.Json | None:
        """Cache an image and return the outcome; None if the call is no longer current.

        A call with invalid arguments ends with an error outcome that names them.
        """
        try:
            call = rpcapi.CacheImageCall(
                wire.identifier(job_id, 'job_id'),
                wire.whole(epoch, 'epoch'),
                wire.identifier(image_id, 'image_id'),
                wire.maybe(wire.text, image_endpoint, 'image_endpoint', wire.ENDPOINT_MAX),
                wire.maybe(wire.secret, token, 'token'),
                wire.transfer_options(options),
                wire.maybe(wire.companions, needed, 'needed'),
                wire.maybe(wire.text, asked_by, 'asked_by', wire.ASKED_BY_MAX),
            )
        except exception.InvalidInput as exc:
            return outcomes.of_error(exc, self._driver_name).to_wire()
        outcome = self._outcome(ctxt, call)
        return None if outcome is None else outcome.to_wire()

    def _outcome(
        self, ctxt: context.RequestContext, call: rpcapi.CacheImageCall
    ) -> model.ImageOutcome | None:
        """Return the outcome of a transfer, or the kept one; None if the call is stale."""
        refusal = self._transfers.refusal
        if refusal is not None:
            return outcomes.of_stop(refusal)
        kept = self._transfers.kept_outcome(call.job_id)
        try:
            fresh_token = functools.partial(self._fresh_token, call.image_id)
            images = self._images_for(call.image_endpoint, call.token, fresh_token)
            begun = self._may_begin(call, is_done=kept is not None)
        except (exception.InvalidInput, exception.ConfigError, exception.NameLost) as exc:
            return outcomes.of_error(exc, self._driver_name)
        except exception.Unavailable as exc:  # nothing was tried: this is no attempt
            LOG.info('Not starting job %s: %s', call.job_id, exc)
            return model.ImageOutcome(model.TaskStatus.ERROR, str(exc), model.Retry.LATER)
        if not begun:
            return None
        return kept or self._transfer(ctxt, call, images)

    def _transfer(
        self,
        ctxt: context.RequestContext,
        call: rpcapi.CacheImageCall,
        images: service.ImageService,
    ) -> model.ImageOutcome:
        work = self._measured(functools.partial(self._cache, images, call))
        if self._transfers.is_running(call.image_id):
            LOG.info(
                'Job %s (image %s on host %s) joins the running transfer, for request %s',
                call.job_id,
                call.image_id,
                self._host,
                call.asked_by or 'unknown',
            )
        return self._transfers.run(
            call.job_id,
            call.epoch,
            call.image_id,
            transfer_log.logged(work, ctxt, call, self._host),
            call.options,
        )

    def stop_image(
        self,
        ctxt: context.RequestContext,
        job_id: object = None,
        epoch: object = None,
        why: object = None,
        keep_partial: object = False,
        **unknown: Any,
    ) -> bool:
        """Remove a job from its transfer; False if no call of that epoch is in progress.

        :raises nova_precache.exception.InvalidInput: a field is out of range, or ``why`` is
            unknown
        """
        job, call = wire.identifier(job_id, 'job_id'), wire.whole(epoch, 'epoch')
        stop = _stop(why, wire.flag(keep_partial, 'keep_partial'))
        left = self._transfers.leave(job, call, stop)
        LOG.info(
            'Stopping job %s on host %s (%s): %s',
            job,
            self._host,
            why,
            'it was running' if left else 'it was not running',
        )
        return left

    def change_image(
        self,
        ctxt: context.RequestContext,
        job_id: object = None,
        epoch: object = None,
        change: object = None,
        **unknown: Any,
    ) -> bool:
        """Change the options of a running transfer; False if the call of that epoch is not.

        :raises nova_precache.exception.InvalidInput: a field is out of range
        """
        job, call = wire.identifier(job_id, 'job_id'), wire.whole(epoch, 'epoch')
        asked = wire.option_change(change)
        was_running = self._transfers.change(job, call, asked)
        LOG.info(
            'Changing job %s on host %s (rate limit %s, deadline %s): %s',
            job,
            self._host,
            'none' if asked.max_rate_bytes is None else f'{shown.size(asked.max_rate_bytes)}/s',
            'none' if asked.deadline_seconds is None else f'in {asked.deadline_seconds:.0f} s',
            'done' if was_running else 'it was not running',
        )
        return was_running

    def forget_image(
        self, ctxt: context.RequestContext, image_id: object = None, **unknown: Any
    ) -> bool:
        """Remove the partial download of an image; False while the image is in use.

        :raises nova_precache.exception.InvalidInput: the id is malformed
        """
        image = wire.identifier(image_id, 'image_id')
        if self._transfers.is_running(image):
            return False
        discarded = self._driver.discard_partial(image)
        LOG.info(
            'Partial download of image %s on host %s %s',
            image,
            self._host,
            'removed' if discarded else 'kept: the image is in use',
        )
        return discarded

    @rpc.refuses(exception.InvalidInput, exception.CacheError)
    def remove_image(
        self,
        ctxt: context.RequestContext,
        image_id: object = None,
        kept_ids: object = (),
        **unknown: Any,
    ) -> model.Json:
        """Remove an image from the cache, unless it is used.

        :param kept_ids: images that stay even if they are the kernel or ramdisk of this one
        :raises nova_precache.exception.InvalidInput: an id is malformed
        :raises nova_precache.exception.CacheError: some files may be left, for this reason
        """
        image = wire.identifier(image_id, 'image_id')
        kept = [
            wire.identifier(each, 'kept_ids')
            for each in wire.items(kept_ids, 'kept_ids', wire.KEPT_MAX)
        ]
        if self._transfers.is_running(image):
            why = 'a transfer of it is running'
            return model.ImageRemoval(model.RemovalStatus.USED, why).to_wire()
        try:
            removal = self._driver.remove_image(image, kept)
        finally:
            self._cache_changed()
        LOG.info(
            'Removal of image %s from the cache of host %s: %s, %s freed%s',
            image,
            self._host,
            removal.status,
            shown.size(removal.freed_bytes),
            f': {removal.reason}' if removal.reason else '',
        )
        return removal.to_wire()

    def register_again(
        self, ctxt: context.RequestContext, agent_id: object = None, **unknown: Any
    ) -> None:
        """Register again, if ``agent_id`` is this agent's: two agents may share the queue."""
        if agent_id == self._name.agent_id:
            self._name.doubt()

    def _may_begin(self, call: rpcapi.CacheImageCall, *, is_done: bool) -> bool:
        """Ask a conductor whether the call is still current.

        :raises nova_precache.exception.NameLost: another agent is registered for the host
        :raises nova_precache.exception.Unavailable: the conductor's database gives no answer now
        """
        starts = not is_done and not self._transfers.is_running(call.image_id)
        try:
            begun = self._conductor.begin_job(call.job_id, call.epoch, starts)
        except exception.AgentConflict as exc:
            self._name.doubt()
            raise exception.NameLost(str(exc)) from exc
        except exception.Unavailable:
            raise
        except Exception as exc:  # noqa: BLE001 - no error is a confirmation
            LOG.warning('Not starting job %s, no conductor confirmed it: %s', call.job_id, exc)
            return False
        if not begun:
            LOG.info('Not starting job %s, call of epoch %d is stale', call.job_id, call.epoch)
        return begun

    def _fresh_token(self, image_id: str) -> str | None:
        """Fetch a token for the running transfer of an image.

        The current epochs are used, because further calls may have joined the transfer.

        :raises nova_precache.exception.ImageUnauthorized: refused for each of its jobs
        :raises nova_precache.exception.DownloadInterrupted: no conductor answers
        """
        why = 'no job needs the image'
        for job_id, epoch in self._transfers.epochs(image_id).items():
            try:
                with self._transfers.aside(image_id):
                    token = self._conductor.get_token(job_id, epoch)
                LOG.info('Glance refused the token for image %s: got a fresh one', image_id)
                return token
            except exception.TokenRefused as exc:
                why = str(exc)
            except (exception.CellUnreachable, exception.Unavailable) as exc:
                raise exception.DownloadInterrupted(
                    f'Cannot fetch a fresh token for image {image_id}: {exc}'
                ) from exc
        raise exception.ImageUnauthorized(f'No fresh token for image {image_id}: {why}')

    def _confirm(self, image_id: str) -> None:
        """Ask a conductor, before an image is published, whether any of its jobs may use it.

        Without an answer the image is published: Glance checks access to it at each boot.

        :raises nova_precache.exception.ImageGone: none of the jobs may use it
        """
        calls = self._transfers.epochs(image_id)
        gone: list[exception.ImageGone] = []
        for job_id, epoch in calls.items():
            try:
                self._conductor.confirm_job(job_id, epoch)
            except exception.ImageGone as exc:
                gone.append(exc)
            except exception.PrecacheError as exc:
                LOG.info('No conductor confirmed job %s (image %s): %s', job_id, image_id, exc)
        if gone and len(gone) == len(calls):
            raise gone[0]

    def _cache(
        self,
        images: service.ImageService,
        call: rpcapi.CacheImageCall,
        progress: model.ProgressCallback,
        control: Control,
    ) -> model.ImageOutcome:
        control.confirm = functools.partial(self._confirm, call.image_id)
        try:
            result = self._driver.cache_image(images, call.image_id, progress, control, call.needed)
            return outcomes.of_result(result)
        except (NotImplementedError, exception.PrecacheError) as exc:
            return outcomes.of_error(exc, self._driver_name)
        except Exception as exc:
            LOG.exception('Caching image %s on host %s failed', call.image_id, self._host)
            return outcomes.of_error(exc, self._driver_name)


def _stop(why: object, keep_partial: bool) -> exception.TransferStopped:
    match why:
        case model.StopWhy.CANCELLED:
            return exception.Cancelled('the request was cancelled', keep_partial=keep_partial)
        case model.StopWhy.PAUSED:
            return exception.Paused('the request is paused')
        case model.StopWhy.DEADLINE:
            return exception.DeadlinePassed('the deadline of the request passed')
    raise exception.InvalidInput(f'why: {wire.shown(why)} is not a reason to stop a transfer')
