# SPDX-License-Identifier: Apache-2.0
"""Who may see the hosts and their caches, and remove images: admins; hosts have no project."""

from collections.abc import Sequence

from oslo_policy import policy

from nova_precache.policies import base

LIST = 'image_precache:hosts:list'
SHOW = 'image_precache:hosts:show'
IMAGES = 'image_precache:hosts:images'
REMOVE_IMAGE = 'image_precache:hosts:remove_image'
IMAGE_HOSTS = 'image_precache:images:hosts'


def list_rules() -> Sequence[policy.RuleDefault]:
    return (
        _rule(LIST, 'List the hosts, with their cells and free space', '/v1/hosts'),
        _rule(SHOW, 'Show a host, with its cell and free space', '/v1/hosts/{host}'),
        _rule(
            IMAGES,
            'List the images in the cache of a host; their ids are shown to admins only',
            '/v1/hosts/{host}/images',
        ),
        base.operation(
            REMOVE_IMAGE,
            base.ADMIN,
            'Remove an image from the cache of a host, unless it is used or pinned there',
            'DELETE',
            '/v1/hosts/{host}/images/{image_id}',
        ),
        _rule(
            IMAGE_HOSTS,
            'List the hosts that have an image in their cache; callers who are not admins '
            'must see the image in the image service',
            '/v1/images/{image_id}/hosts',
        ),
    )


def _rule(name: str, description: str, path: str) -> policy.RuleDefault:
    return base.operation(name, base.ADMIN, description, 'GET', path)
