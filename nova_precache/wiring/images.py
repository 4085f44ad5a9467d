# SPDX-License-Identifier: Apache-2.0
"""Builds the image service for each kind of caller."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NoReturn, Protocol

from keystoneauth1 import exceptions as ksa_exceptions, loading
from oslo_config import cfg

from nova_precache import context, exception, model, outages
from nova_precache.compute import manager
from nova_precache.image import glance, service

LOG = logging.getLogger(__name__)


class OwnImages(service.ImageService, Protocol):
    """The image service of a conductor, with the endpoint and token that it passes to computes."""

    def endpoint(self) -> str | None:
        """Return its URL."""

    def token(self, *, fresh: bool = False) -> str | None:
        """Return a token for it."""


def of_service(
    conf: cfg.ConfigOpts, outage: outages.Outage | None = None
) -> glance.GlanceImageService:
    """Build the image service with this service's own credentials in ``[glance]``.

    :raises nova_precache.exception.ConfigError: neither credentials nor an endpoint are set
    """
    settings = glance.GlanceSettings.from_conf(conf)
    try:
        credentials = loading.load_auth_from_conf_options(conf, 'glance')
    except ksa_exceptions.AuthPluginException as exc:
        raise exception.ConfigError(f'[glance] auth_type {conf.glance.auth_type}: {exc}') from exc
    if credentials is None:
        return glance.GlanceImageService.with_token(
            settings, endpoint=None, token=None, outage=outage
        )
    return glance.GlanceImageService(
        settings, credentials, outage=outage, credentials=_described(conf)
    )


def _described(conf: cfg.ConfigOpts) -> str:
    """Return the options with the credentials, and the name of the user if they have one."""
    username = getattr(conf.glance, 'username', None)  # an option of some plugins
    return (
        f'the password of [glance] username {username}'
        if username
        else 'the credentials of [glance]'
    )


def of_boots(conf: cfg.ConfigOpts) -> service.ImageService:
    """Build the image service for boots on this host, which need it only for uncached images.

    A compute usually has neither credentials nor an endpoint configured: calls bring both.

    :raises nova_precache.exception.ConfigError: an option cannot be used
    """
    if conf.glance.auth_type or conf.glance.endpoint_override:
        return of_service(conf)
    return _NoImages()


class _NoImages:
    """Placeholder if the configuration names no image service; every use is an error."""

    def show(self, image_id: str) -> model.Image:
        self._refuse(image_id)

    def is_member(self, image_id: str, project_id: str) -> bool:
        self._refuse(image_id)

    def open(
        self, image_id: str, offset_bytes: int = 0, size_bytes: int | None = None
    ) -> AbstractContextManager[service.Connection]:
        self._refuse(image_id)

    def _refuse(self, image_id: str) -> NoReturn:
        raise exception.ConfigError(
            f'Image {image_id} is not in the cache, and cannot be downloaded: set [glance] '
            'endpoint_override, or [glance] auth_type with its credentials'
        )


def of_callers(
    conf: cfg.ConfigOpts,
) -> Callable[[context.RequestContext], service.ImageService]:
    """Return a factory of the image service for a caller of the API, with the caller's token."""
    settings = glance.GlanceSettings.from_conf(conf)
    session = glance.new_session(settings)
    outage = glance.new_outage()
    own = of_service(conf, outage)  # finds the endpoint in the catalog

    def images_for(ctxt: context.RequestContext) -> service.ImageService:
        try:
            endpoint = own.endpoint()
        except exception.CredentialsRefused as exc:  # this service's, not the caller's
            raise exception.ImageServiceUnavailable(
                'Cannot look up the image service: Keystone refuses the credentials of [glance]'
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
    """Return a factory of the image service from the endpoint and token of a call to a compute."""
    settings = glance.GlanceSettings.from_conf(conf)
    session, outage = glance.new_session(settings), glance.new_outage()
    if settings.is_anywhere_allowed:
        LOG.warning(
            'Calls may name any image endpoint: set [glance] allowed_endpoints or '
            'endpoint_override to restrict them'
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
