# SPDX-License-Identifier: Apache-2.0
"""The compute's RPC endpoint: fenced, joined, and never without an outcome."""

import functools
import logging
from collections.abc import Callable
from typing import Any

from nova_precache import context, exception, model, rpc
from nova_precache.compute import options as transfer_options
from nova_precache.compute import outcomes, reporter, rpcapi, transfers
from nova_precache.control import Control
from nova_precache.image import service
from nova_precache.virt import driver as virt_driver

LOG = logging.getLogger(__name__)

ImagesFor = Callable[[str | None, str | None, Callable[[], str | None]], service.ImageService]
"""Makes an image service of an endpoint, a token, and a way to fetch a fresh token."""


class ComputeManager(rpc.Endpoint, version=rpcapi.VERSION):
    """Serves ``rpcapi.ComputeAPI``; each call waits in a thread of its own."""

    def __init__(
        self,
        host: str,
        driver: virt_driver.ComputeDriver,
        conductor: reporter.Reporter,
        images_for: ImagesFor,
        running: transfers.Transfers,
        measured: Callable[[transfers.Work], transfers.Work] = lambda work: work,
    ) -> None:
        self._host = host
        self._driver = driver
        self._driver_name = type(driver).__name__
        self._conductor = conductor
        self._images_for = images_for
        self._transfers = running
        self._measured = measured
        self._warned = False

    def cache_image(
        self,
        ctxt: context.RequestContext,
        job_id: str,
        epoch: int,
        image_id: str,
        image_endpoint: str | None = None,
        token: str | None = None,
        options: object = None,
        **unknown: Any,
    ) -> model.Json | None:
        """Cache an image; None when the conductor says that the call no longer counts."""
        kept = self._transfers.kept_outcome(job_id)
        if kept is not None:
            return kept.to_wire()
        if self._transfers.is_stopping:
            stopping = exception.ShuttingDown('the compute is shutting down')
            return outcomes.of_stop(stopping).to_wire()
        try:
            wanted = transfer_options.read(options)
        except exception.InvalidInput as exc:
            return outcomes.of_error(exc, self._driver_name).to_wire()
        try:
            if not self._may_begin(job_id, epoch, image_id):
                return None
        except exception.DatabaseUnavailable as exc:  # nothing was tried: it is no attempt
            LOG.info('Job %s is not begun: %s', job_id, exc)
            return model.ImageOutcome(model.TaskStatus.ERROR, str(exc), model.Retry.LATER).to_wire()
        images = self._images_for(image_endpoint, token, self._conductor.get_token)
        outcome = self._transfers.run(
            job_id,
            epoch,
            image_id,
            self._measured(functools.partial(self._cache, ctxt, images, image_id)),
            wanted,
        )
        LOG.info(
            'Image %s on host %s (job %s): %s%s',
            image_id,
            self._host,
            job_id,
            outcome.status,
            f', {outcome.reason}' if outcome.reason else '',
        )
        return outcome.to_wire()

    def stop_image(
        self,
        ctxt: context.RequestContext,
        job_id: str,
        epoch: int,
        why: str,
        keep_partial: bool = False,
        **unknown: Any,
    ) -> bool:
        """Have a job leave its transfer; False when no call of that epoch is being worked on.

        :raises nova_precache.exception.InvalidInput: nobody knows that ``why``
        """
        left = self._transfers.leave(job_id, epoch, _stop(why, keep_partial))
        LOG.info(
            'Job %s of host %s is stopped (%s): %s',
            job_id,
            self._host,
            why,
            'it was at work' if left else 'nothing runs for it',
        )
        return left

    def forget_image(self, ctxt: context.RequestContext, image_id: str, **unknown: Any) -> bool:
        """Remove what an unfinished download left; False while somebody works on the image."""
        if self._transfers.is_running(image_id):
            return False
        forgotten = self._driver.forget_image(image_id)
        LOG.info(
            'What is unfinished of image %s on host %s %s',
            image_id,
            self._host,
            'is removed' if forgotten else 'stays: it is in use',
        )
        return forgotten

    def _may_begin(self, job_id: str, epoch: int, image_id: str) -> bool:
        """Ask a conductor whether the call still counts.

        :raises nova_precache.exception.DatabaseUnavailable: it could not look that up
        """
        starts = not self._transfers.is_running(image_id)
        try:
            begun = self._conductor.begin_job(job_id, epoch, starts)
        except exception.DatabaseUnavailable:
            raise
        except Exception as exc:  # noqa: BLE001 - whatever it was, it is no confirmation
            LOG.warning('Job %s is not begun, no conductor confirms it: %s', job_id, exc)
            return False
        if not begun:
            LOG.info('Job %s is not begun, its call of epoch %d is stale', job_id, epoch)
        return begun

    def _cache(
        self,
        ctxt: context.RequestContext,
        images: service.ImageService,
        image_id: str,
        progress: model.ProgressCallback,
        control: Control,
    ) -> model.ImageOutcome:
        ctxt.update_store()  # in a thread of its own, whoever else joins later
        try:
            result = self._driver.cache_image(images, image_id, progress, control)
            return outcomes.of_result(result)
        except NotImplementedError as exc:
            self._warn_once()
            return outcomes.of_error(exc, self._driver_name)
        except exception.PrecacheError as exc:
            return outcomes.of_error(exc, self._driver_name)
        except Exception as exc:
            LOG.exception('Caching image %s on host %s failed', image_id, self._host)
            return outcomes.of_error(exc, self._driver_name)

    def _warn_once(self) -> None:
        if not self._warned:
            self._warned = True
            LOG.warning('Driver %s cannot cache images', self._driver_name)


def _stop(why: str, keep_partial: bool) -> exception.TransferStopped:
    match why:
        case rpcapi.StopWhy.CANCELLED:
            return exception.Cancelled('the request was cancelled', keep_partial=keep_partial)
        case rpcapi.StopWhy.PAUSED:
            return exception.Paused('the request is paused')
        case rpcapi.StopWhy.DEADLINE:
            return exception.DeadlinePassed('the deadline of the request passed')
    raise exception.InvalidInput(f'why: {why!r} is no reason to stop an image')
