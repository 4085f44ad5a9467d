# SPDX-License-Identifier: Apache-2.0
"""The image service, as each of those sees it who ask for images."""

import logging
from collections.abc import Callable
from typing import Protocol

from keystoneauth1 import loading
from oslo_config import cfg

from nova_precache import context, exception, outages
from nova_precache.compute import manager
from nova_precache.image import glance, service

LOG = logging.getLogger(__name__)


class OwnImages(service.ImageService, Protocol):
    """The image service as a conductor sees it, and as it lets computes see it."""

    def endpoint(self) -> str | None:
        """Give where it is."""

    def token(self, *, fresh: bool = False) -> str | None:
        """Give a token for it."""


def of_service(
    conf: cfg.ConfigOpts, outage: outages.Outage | None = None
) -> glance.GlanceImageService:
    """Make the image service as this service's own credentials in ``[glance]`` see it.

    :raises nova_precache.exception.ConfigError: neither credentials nor an endpoint are set
    """
    settings = glance.GlanceSettings.from_conf(conf)
    credentials = loading.load_auth_from_conf_options(conf, 'glance')
    if credentials is None:
        return glance.GlanceImageService.with_token(
            settings, endpoint=None, token=None, outage=outage
        )
    return glance.GlanceImageService(settings, credentials, outage=outage)


def of_callers(
    conf: cfg.ConfigOpts,
) -> Callable[[context.RequestContext], service.ImageService]:
    """Give what makes the image service as a caller of the API sees it."""
    settings = glance.GlanceSettings.from_conf(conf)
    session = glance.new_session(settings)
    outage = glance.new_outage()
    own = of_service(conf, outage)  # finds the endpoint in the catalog

    def images_for(ctxt: context.RequestContext) -> service.ImageService:
        try:
            endpoint = own.endpoint()
        except exception.ImageUnauthorized as exc:  # of this service, and not of the caller
            raise exception.ImageServiceUnavailable(
                'The image service cannot be found: the credentials of [glance] are refused'
            ) from exc
        return glance.GlanceImageService.with_token(
            settings,
            endpoint=endpoint,
            token=ctxt.auth_token,
            session=session,
            outage=outage,
        )

    return images_for


def of_calls(conf: cfg.ConfigOpts) -> manager.ImagesFor:
    """Give what makes the image service as a call to a compute says to reach it."""
    settings = glance.GlanceSettings.from_conf(conf)
    session, outage = glance.new_session(settings), glance.new_outage()
    if settings.is_anywhere_allowed:
        LOG.warning(
            'Images are read from whatever endpoint a call names: '
            'set [glance] allowed_endpoints, or endpoint_override'
        )

    def images_for(
        endpoint: str | None, token: str | None, fresh_token: Callable[[], str | None]
    ) -> service.ImageService:
        return glance.GlanceImageService.with_token(
            settings,
            endpoint=settings.endpoint_of_call(endpoint),
            token=token,
            fresh_token=fresh_token,
            session=session,
            request_id=context.current_id(),
            outage=outage,
        )

    return images_for
