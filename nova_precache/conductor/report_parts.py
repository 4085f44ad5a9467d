# SPDX-License-Identifier: Apache-2.0
"""Read the parts of reports, which older computes send one by one."""

from collections.abc import Mapping
from typing import Any

from nova_precache import wire
from nova_precache.cache import layout
from nova_precache.db import caches, jobs


def read_progress(
    cell_uuid: str, job_id: object, epoch: object, sequence: object, progress: object, agent: object
) -> jobs.ProgressReport:
    """Read the progress of a job.

    :param agent: id of the agent that reports; None from an agent of RPC version 1.1
    :raises nova_precache.exception.InvalidInput: a field is out of range; names it
    """
    return jobs.ProgressReport(
        wire.identifier(job_id, 'job_id'),
        wire.whole(epoch, 'epoch'),
        wire.whole(sequence, 'sequence'),
        wire.progress(progress),
        cell_uuid,
        wire.maybe(wire.text, agent, 'agent_id', wire.ID_MAX, 1),
    )


def read_images(
    cell_uuid: str, host: str, news: Mapping[str, Any], senders: wire.Senders
) -> caches.Report:
    """Read a cache inventory, or its changes.

    A file without the name of a base image is skipped: a directory may hold any file.

    :param senders: logs a host whose files are skipped
    :raises nova_precache.exception.InvalidInput: a field is out of range; names it
    """
    get = news.get
    files = [
        wire.cached_image(host, image)
        for image in wire.items(get('images'), 'images', wire.FILES_MAX)
    ]
    gone = wire.items(get('removed'), 'removed', wire.FILES_MAX)
    report = caches.Report(
        host,
        [file for file in files if _is_name(file.name)],
        [each for each in gone if _is_name(each)],
        full=wire.flag(get('full'), 'full'),
        after=wire.maybe(wire.text, get('after'), 'after', wire.FILE_NAME_MAX),
        until=wire.maybe(wire.text, get('until'), 'until', wire.FILE_NAME_MAX),
        cell_uuid=cell_uuid,
    )
    if len(report.images) < len(files):
        sender = f'host {host} of cell {cell_uuid}'
        senders.refused('some images', sender, 'their names are not those of base files')
    return report


def _is_name(name: object) -> bool:
    """Return whether a file name is that of a base image and fits the column."""
    return isinstance(name, str) and len(name) <= caches.NAME_MAX and layout.is_base_name(name)
