# SPDX-License-Identifier: Apache-2.0
"""Saves new requests, inside a transaction; a repeated one returns the saved request."""

import dataclasses
import hashlib
import json

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import exception, model
from nova_precache.db import rows
from nova_precache.db.engine import models, session as db_session


@dataclasses.dataclass(frozen=True)
class RequestLimits:
    """Limits against abuse, named as their options in ``[image_cache]``."""

    max_images_per_request: int
    max_tasks_per_request: int
    max_active_requests_per_project: int


@dataclasses.dataclass(frozen=True)
class NewRequest:
    """A validated request, for an aggregate or for named hosts.

    :ivar client_request_id: chosen by the client, unique in its project
    :ivar pin_id: the pin that makes the request
    """

    images: tuple[str, ...]
    aggregate: model.Aggregate | None = None
    hosts: tuple[str, ...] | None = None
    options: model.RequestOptions = dataclasses.field(default_factory=model.RequestOptions)
    description: str | None = None
    client_request_id: str | None = None
    pin_id: str | None = None
    project_id: str | None = None
    user_id: str | None = None
    is_admin: bool = False
    request_id: str | None = None
    global_request_id: str | None = None
    priority: int = 0

    @property
    def client_key(self) -> str | None:
        if self.client_request_id is None:
            return None
        return client_key(self.project_id, self.client_request_id)


def client_key(project_id: str | None, client_request_id: str) -> str:
    """Build a key from a client's own id that is unique over all projects."""
    key = json.dumps([project_id, client_request_id])
    return hashlib.sha256(key.encode()).hexdigest()


def check_size(new: NewRequest, limits: RequestLimits) -> None:
    hosts = new.hosts if new.aggregate is None or new.hosts is not None else new.aggregate.hosts
    hosts = hosts or ()
    images, tasks = len(new.images), len(new.images) * len(hosts)
    if images > limits.max_images_per_request:
        raise exception.TooMany(
            'images', images, 'max_images_per_request', limits.max_images_per_request
        )
    if tasks > limits.max_tasks_per_request:
        raise exception.TooMany(
            'tasks', tasks, 'max_tasks_per_request', limits.max_tasks_per_request
        )


def accept(
    session: orm.Session, request_id: str, new: NewRequest, limits: RequestLimits
) -> model.CacheRequest:
    """Save a request unless it is saved already; the counter's lock serialises acceptances."""
    number = _next_number(session)
    known = _known(session, request_id, new.client_key)
    if known is not None:
        return rows.requests(session, [known])[0]
    if new.pin_id is None:
        _check_active(session, new.project_id, limits)
    row = _row(new, request_id, number)
    row.created_at = db_session.now(session)
    session.add(row)
    session.flush()
    session.add_all(models.RequestImage(request_id=row.id, image_id=image) for image in new.images)
    _remember_names(session, new.images)
    session.flush()
    return rows.request(row, {})


def _next_number(session: orm.Session) -> int:
    counter = models.Counter
    session.execute(
        db_session.update(counter).where(counter.name == 'requests').values(value=counter.value + 1)
    )
    return session.scalars(sa.select(counter.value).where(counter.name == 'requests')).one()


def _known(
    session: orm.Session, request_id: str, client_key: str | None
) -> models.CacheRequest | None:
    request = models.CacheRequest
    same = request.id == request_id
    if client_key is not None:
        same = sa.or_(same, request.client_key == client_key)
    return session.scalars(sa.select(request).where(same)).first()


def _check_active(session: orm.Session, project_id: str | None, limits: RequestLimits) -> None:
    active = session.scalars(
        sa.select(sa.func.count())
        .select_from(models.CacheRequest)
        .where(models.CacheRequest.project_id == project_id)
        .where(models.CacheRequest.pin_id.is_(None))
        .where(models.CacheRequest.status.in_(model.REQUEST_ACTIVE))
    ).one()
    limit = limits.max_active_requests_per_project
    if active >= limit:
        raise exception.TooMany(
            'unfinished requests', active + 1, 'max_active_requests_per_project', limit
        )


def _row(new: NewRequest, request_id: str, number: int) -> models.CacheRequest:
    aggregate, options = new.aggregate, rows.in_utc(new.options)
    return models.CacheRequest(
        id=request_id,
        number=number,
        status=model.RequestStatus.ACCEPTED,
        aggregate_id=aggregate.id if aggregate is not None else 0,
        aggregate_uuid=aggregate.uuid if aggregate is not None else '',
        aggregate_name=aggregate.name if aggregate is not None else '',
        images=list(new.images),
        hosts=None if new.hosts is None else list(new.hosts),
        options=rows.options_to_save(options),
        not_before=options.not_before,
        deadline=options.deadline,
        max_parallel_hosts=options.max_parallel_hosts,
        max_failures=options.max_failures,
        canary_passed=options.canary is None,
        description=new.description,
        client_request_id=new.client_request_id,
        client_key=new.client_key,
        pin_id=new.pin_id,
        priority=new.priority,
        project_id=new.project_id,
        user_id=new.user_id,
        is_admin=new.is_admin,
        request_id=new.request_id,
        global_request_id=new.global_request_id,
        hosts_total=0,
        hosts_done=0,
    )


def _remember_names(session: orm.Session, image_ids: tuple[str, ...]) -> None:
    """Record the images by the names of their files in caches, which are hashes."""
    names = {
        hashlib.sha1(image.encode(), usedforsecurity=False).hexdigest(): image
        for image in image_ids
    }
    row = models.ImageName
    known = set(session.scalars(sa.select(row.name).where(row.name.in_(list(names)))))
    session.add_all(
        row(name=name, image_id=image) for name, image in names.items() if name not in known
    )
