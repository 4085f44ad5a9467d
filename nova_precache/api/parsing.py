# SPDX-License-Identifier: Apache-2.0
"""Reads bodies and checks them against the inventory: aggregate, hosts, images, window.

An error names the field, before anything is saved.
"""

import contextlib
import dataclasses
import datetime
import functools
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, cast

from oslo_utils import timeutils, uuidutils

from nova_precache import exception, model, shown
from nova_precache.api import times
from nova_precache.api.request import Request
from nova_precache.db.request import queries
from nova_precache.image import companions, service
from nova_precache.policies import aggregates as aggregate_policies

_LIMITS = ('max_parallel_hosts', 'max_rate_bytes', 'canary', 'max_failures')
_GREATEST_ID = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class RequestBody:
    """Images for the hosts of an aggregate or for named hosts, with the request's options."""

    aggregate: model.Aggregate | None
    named_hosts: tuple[str, ...] | None
    images: tuple[model.Image, ...]
    options: model.RequestOptions

    @property
    def hosts(self) -> Sequence[str]:
        return (self.named_hosts if self.aggregate is None else self.aggregate.hosts) or ()


@dataclasses.dataclass(frozen=True)
class Window:
    """The time from which work may start, and the deadline; UTC."""

    not_before: datetime.datetime | None
    deadline: datetime.datetime | None


def read(req: Request, body: Mapping[str, Any]) -> RequestBody:
    """Read the ``request`` of a body; a null field counts as absent.

    :raises nova_precache.exception.InvalidInput: names the field, or the host or the image
    :raises nova_precache.exception.AggregateNotFound: there is no such aggregate
    :raises nova_precache.exception.VersionUnsupported: no compute may be called
    """
    asked = {key: value for key, value in body.items() if value is not None}
    refuse_by_nova(req, asked, 'max_rate_bytes')
    options = _options(asked)
    if ('aggregate' in asked) == ('hosts' in asked):
        raise exception.InvalidInput(
            'Invalid input for field/attribute request. Either aggregate or hosts is required.'
        )
    check_images(req, [canonical(image_id) for image_id in asked['images']])
    refuse_unsupported(req)
    aggregate = find_aggregate(req, asked['aggregate']) if 'aggregate' in asked else None
    named = _mapped_hosts(req, asked['hosts']) if 'hosts' in asked else None
    hosts = (named if aggregate is None else aggregate.hosts) or ()
    _check_tasks(req, len(asked['images']) * len(hosts))
    _check_canary(options, len(hosts))
    return RequestBody(aggregate, named, usable_images(req, asked['images']), options)


def find_aggregate(req: Request, asked: float | str) -> model.Aggregate:
    """Find the aggregate with this id, else with this uuid, else with this name.

    :raises nova_precache.exception.AggregateNotFound: there is none
    """
    stock = req.services.inventory
    if _is_number(asked):
        with contextlib.suppress(exception.AggregateNotFound):
            return stock.get_aggregate(int(asked))
    meant = canonical(asked) if uuidutils.is_uuid_like(asked) else None
    known = stock.list_aggregates()
    by_uuid = [aggregate for aggregate in known if aggregate.uuid == meant]
    by_name = [aggregate for aggregate in known if aggregate.name == asked]
    for aggregate in (*by_uuid, *by_name):
        return aggregate
    raise exception.AggregateNotFound(shown.value(asked))


def aggregate_filter(req: Request, asked: str) -> queries.AggregateFilter:
    """Return the filter of a list by an aggregate, which may have been deleted.

    Aggregates are looked up only for callers who may list them. For others, the filter is
    compared with the aggregate that requests and pins have recorded: a name that none of theirs
    has gives an empty list, whether or not such an aggregate exists.

    :raises nova_precache.exception.InvalidInput: the caller may list aggregates, and none matches
    """
    number = int(asked) if _is_number(asked) and 0 < int(asked) <= _GREATEST_ID else None
    if not req.may(aggregate_policies.INDEX):
        meant = canonical(asked) if uuidutils.is_uuid_like(asked) else None
        return queries.AggregateFilter(id=number, uuid=meant, name=asked)
    try:
        return queries.AggregateFilter(id=find_aggregate(req, asked).id)
    except exception.AggregateNotFound as error:
        if number is not None:
            return queries.AggregateFilter(id=number)
        raise bad_aggregate(asked, error) from error


def bad_aggregate(asked: str, error: exception.AggregateNotFound) -> exception.InvalidInput:
    """Return the error for a query that names no aggregate."""
    return exception.InvalidField('aggregate', asked, str(error), 'query parameters')


def canonical(asked: Any) -> str:
    """Return a uuid in its canonical spelling."""
    return str(uuid.UUID(asked))


def check_images(req: Request, asked: Sequence[str]) -> None:
    """Check the number of images, and that none is listed twice.

    :raises nova_precache.exception.TooMany: names the limit
    :raises nova_precache.exception.InvalidInput: an image is listed twice
    """
    if len(set(asked)) < len(asked):
        raise _of_images(exception.InvalidInput('Duplicate images in request'))
    limit = req.settings.max_images_per_request
    if len(asked) > limit:
        raise _of_images(exception.TooMany('images', len(asked), 'max_images_per_request', limit))


def _of_images(error: exception.InvalidInput) -> exception.InvalidInput:
    error.field = 'images'
    return error


def usable_images(req: Request, asked: Sequence[str]) -> tuple[model.Image, ...]:
    """Look up the images with the caller's own token, each with its kernel and ramdisk.

    Their ids are spelled as in Glance; the names of their files depend on this spelling.

    :raises nova_precache.exception.ImageNotUsable: one is unknown, hidden or not active
    :raises nova_precache.exception.InvalidInput: one is listed twice, in two spellings
    :raises nova_precache.exception.ImageServiceUnavailable: Glance gives no answer
    """
    images = req.services.images_for(req.context)
    found: dict[str, model.Image] = {}
    spellings: dict[str, str] = {}
    for spelling in asked:
        image = companions.look_up(_active(images, spelling), functools.partial(_active, images))
        if image.id in found:
            raise _of_images(
                exception.InvalidInput(
                    f'Duplicate images in request: {spellings[image.id]} and {spelling} are the '
                    'same'
                )
            )
        found[image.id], spellings[image.id] = image, spelling
    return tuple(found.values())


def _active(images: service.ImageService, image_id: str) -> model.Image:
    image = images.show(image_id)
    if image.status != 'active':
        raise exception.ImageNotUsable(image.id, f'is {image.status}, not active.')
    return image


def refuse_unsupported(req: Request) -> None:
    """Check that computes may be called at all.

    :raises nova_precache.exception.VersionUnsupported: the RPC version pin is too low
    """
    why = req.services.why_unsupported()
    if why is not None:
        raise exception.VersionUnsupported(why)


def refuse_by_nova(req: Request, asked: Mapping[str, Any], field: str) -> None:
    """Refuse an option that a stock nova-compute would ignore.

    :raises nova_precache.exception.InvalidInput: names the field
    """
    if req.settings.is_stock and asked.get(field):
        raise exception.InvalidField(
            field, asked[field], 'A stock nova-compute does not support it.'
        )


def change(req: Request, asked: Mapping[str, Any]) -> model.RequestChange:
    """Read the new values for a request; null removes a limit.

    :raises nova_precache.exception.InvalidInput: the deadline has passed
    """
    refuse_by_nova(req, asked, 'max_rate_bytes')
    numbers = {
        name: None if asked[name] is None else int(asked[name])
        for name in ('priority', 'max_rate_bytes', 'max_parallel_hosts')
        if name in asked
    }
    times_asked = {'deadline': window(asked).deadline} if 'deadline' in asked else {}
    return cast(model.RequestChange, {**numbers, **times_asked})


def window(asked: Mapping[str, Any]) -> Window:
    """Read the time from which work may start, and the deadline.

    :raises nova_precache.exception.InvalidInput: the deadline has passed or precedes the start
    """
    read = Window(_time(asked.get('not_before')), _time(asked.get('deadline')))
    if read.deadline is not None:
        if read.deadline <= timeutils.utcnow():
            raise exception.InvalidField(
                'deadline', asked['deadline'], 'It must be later than now.'
            )
        if read.not_before is not None and read.deadline <= read.not_before:
            raise exception.InvalidField(
                'deadline',
                asked['deadline'],
                f'It must be later than the start, {times.to_text(read.not_before)}.',
            )
    return read


def _is_number(asked: float | str) -> bool:
    return not isinstance(asked, str) or (asked.isascii() and asked.isdigit())


def _options(asked: Mapping[str, Any]) -> model.RequestOptions:
    when = window(asked)
    waits = asked.get('wait_for_down_hosts', False)
    if waits and when.deadline is None:
        raise exception.InvalidField('wait_for_down_hosts', waits, 'It requires a deadline.')
    return model.RequestOptions(
        not_before=when.not_before,
        deadline=when.deadline,
        wait_for_down_hosts=waits,
        **{name: int(asked[name]) for name in _LIMITS if name in asked},
    )


def _time(text: str | None) -> datetime.datetime | None:
    return None if text is None else times.from_text(text)


def _mapped_hosts(req: Request, asked: Sequence[str]) -> tuple[str, ...]:
    mapped = req.services.inventory.cell_of_hosts(asked)
    unknown = [host for host in asked if host not in mapped]
    if unknown:
        are = 'is' if len(unknown) == 1 else 'are'
        raise exception.InvalidField(
            'hosts', unknown, f'{shown.some(unknown)} {are} not mapped to a cell.'
        )
    return tuple(asked)


def _check_canary(options: model.RequestOptions, hosts: int) -> None:
    """Refuse a canary of more hosts than there are; nothing is done in an empty aggregate."""
    if hosts and (options.canary or 0) > hosts:
        number = '1 host' if hosts == 1 else f'{hosts} hosts'
        raise exception.InvalidField('canary', options.canary, f'The request is for {number}.')


def _check_tasks(req: Request, tasks: int) -> None:
    limit = req.settings.max_tasks_per_request
    if tasks > limit:
        raise exception.TooMany('tasks', tasks, 'max_tasks_per_request', limit)
