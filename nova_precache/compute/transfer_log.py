# SPDX-License-Identifier: Apache-2.0
"""Logs a transfer: one line when it begins, and one when it ends."""

import dataclasses
import logging
import time
from collections.abc import Callable

from nova_precache import context, model
from nova_precache.compute import rpcapi, transfers
from nova_precache.transfer_control import Control

LOG = logging.getLogger(__name__)


def logged(
    work: transfers.Work,
    ctxt: context.RequestContext,
    call: rpcapi.CacheImageCall,
    host: str,
    clock: Callable[[], float] = time.monotonic,
) -> transfers.Work:
    """Wrap the work of a transfer so that it is logged, and its outcome has bytes and seconds.

    :param ctxt: of the call that starts the transfer; later calls join it
    """

    def run(progress: model.ProgressCallback, control: Control) -> model.ImageOutcome:
        ctxt.update_store()  # this is the thread of the transfer
        LOG.info(
            'Job %s (image %s on host %s) begins, for request %s',
            call.job_id,
            call.image_id,
            host,
            call.asked_by or 'unknown',
        )
        began, moved_bytes = clock(), 0

        def note(now: model.Progress) -> None:
            nonlocal moved_bytes
            moved_bytes = now.bytes_done
            progress(now)

        outcome = work(note, control)
        if outcome.status not in model.TASK_SUCCEEDED:
            outcome = dataclasses.replace(outcome, bytes_done=moved_bytes)
        ended = dataclasses.replace(outcome, seconds=clock() - began)
        LOG.log(
            logging.WARNING if _is_final_failure(ended, control) else logging.INFO,
            'Job %s (image %s on host %s) ended for request %s: %s',
            call.job_id,
            call.image_id,
            host,
            call.asked_by or 'unknown',
            ended.line,
        )
        return ended

    return run


def _is_final_failure(outcome: model.ImageOutcome, control: Control) -> bool:
    """Return whether a failure is final; a mismatch may be: conductors count those."""
    if outcome.retry == model.Retry.BACKOFF:
        return control.is_last_attempt and outcome.is_attempt
    return outcome.is_failure and outcome.is_attempt
