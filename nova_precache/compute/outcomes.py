# SPDX-License-Identifier: Apache-2.0
"""Converts the result or error of a driver to the outcome that the conductor records."""

from nova_precache import exception, model


def of_result(result: model.CacheResult) -> model.ImageOutcome:
    """Convert a driver's result; an image that existed already counts no bytes."""
    if result.existing:
        return model.ImageOutcome(model.TaskStatus.EXISTING, bytes_total=0)
    return model.ImageOutcome(
        model.TaskStatus.CACHED, bytes_done=result.bytes_done, bytes_total=result.bytes_total
    )


def of_stop(error: exception.TransferStopped) -> model.ImageOutcome:
    """Convert the reason why a transfer was stopped; final, unless it resumes later."""
    status = model.TaskStatus.ERROR
    if isinstance(error, exception.Cancelled):
        status = model.TaskStatus.CANCELLED
    elif isinstance(error, exception.DeadlinePassed):
        status = model.TaskStatus.EXPIRED
    was_paused = isinstance(error, exception.Paused)  # it may have been resumed already
    return model.ImageOutcome(status, str(error), error.retry, at_once=was_paused)


def of_error(error: Exception, driver: str) -> model.ImageOutcome:
    """Convert an error and keep its reason; errors of this package say if a retry makes sense."""
    if isinstance(error, NotImplementedError):
        return model.ImageOutcome(
            model.TaskStatus.UNSUPPORTED, f'driver {driver} cannot cache images'
        )
    if isinstance(error, exception.BackendUnsupported):
        return model.ImageOutcome(model.TaskStatus.UNSUPPORTED, str(error))
    if isinstance(error, exception.TransferStopped):
        return of_stop(error)
    if isinstance(error, exception.SlowDownload):
        return model.ImageOutcome(
            model.TaskStatus.ERROR, str(error), error.retry, gained_bytes=error.gained_bytes
        )
    if isinstance(error, exception.CacheError):
        return model.ImageOutcome(model.TaskStatus.ERROR, str(error), error.retry)
    if isinstance(error, exception.Unavailable | exception.CellUnreachable):
        return model.ImageOutcome(model.TaskStatus.ERROR, str(error), model.Retry.BACKOFF)
    if isinstance(error, exception.PrecacheError):
        return model.ImageOutcome(model.TaskStatus.ERROR, str(error))
    return model.ImageOutcome(model.TaskStatus.ERROR, f'unexpected {type(error).__name__}: {error}')
