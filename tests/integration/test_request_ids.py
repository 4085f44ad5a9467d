# SPDX-License-Identifier: Apache-2.0
"""One id leads from the caller through the API, a conductor and a compute to Glance's log."""

import uuid

from tests.integration.keystone_site import Site
from tests.service import wait_until


def test_caller_id_reaches_every_log(site: Site) -> None:
    image_id = site.upload(site.admin, 'private')
    aggregate_id = site.aggregate(f'of {image_id}', *site.hosts)
    callers = f'req-{uuid.uuid4()}'

    answer = site.cache(
        site.token(site.admin), aggregate_id, image_id, {'X-Openstack-Request-Id': callers}
    )

    assert answer.status_code == 202
    assert site.outcome(image_id) == {'cached': 2}
    own = answer.headers['X-Openstack-Request-Id']
    lines = {name: _lines(log, callers) for name, log in site.logs().items()}
    assert set(lines) == {'api-control', 'compute-host1', 'compute-host2', 'conductor-control'}
    for name, found in lines.items():
        assert any(own in line and image_id in line for line in found), name
    downloads = site.gateway.served(image_id)
    assert [download.request_id for download in downloads] == [callers] * 2
    # Glance has adopted it: it logs and answers under it.
    wait_until(lambda: _lines(site.glance.log.read_text(), callers), "it is in Glance's log")


def _lines(log: str, text: str) -> list[str]:
    return [line for line in log.splitlines() if text in line]
