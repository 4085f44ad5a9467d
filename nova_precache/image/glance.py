# SPDX-License-Identifier: Apache-2.0
"""The image service over the Glance client: the only module that imports it.

Metadata are read through the client, image data from the client's HTTP session, since its
``images.data()`` takes no offset.
"""

import contextlib
import dataclasses
import logging
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import glanceclient
import glanceclient.exc
import requests
from keystoneauth1 import adapter, exceptions as ksa_exceptions, plugin, session as ksa_session
from oslo_config import cfg

from nova_precache import context, deadline, exception, exchange, model, outages, redirects
from nova_precache.image import connection as connections, endpoints, service

LOG = logging.getLogger(__name__)

# Many downloads may be refused at once, and those of a broken compute repeatedly.
FRESH_TOKEN_SECONDS = 5.0
_RETRIED_STATUS_CODES = [500, 502, 503, 504]
# The 4xx that concern the caller, the image or the time. By RFC 9110, any other one is treated
# like 400: a request with a Range is not served in this form.
_OWN_MEANING = frozenset({401, 403, 404, 407, 408, 410, 425, 429, 451})
# For one answer without image data, including its requests to Keystone and all retries.
ANSWER_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class GlanceSettings:
    """Settings for the access to Glance; the defaults are those of the options."""

    endpoint_override: str | None = None
    allowed_endpoints: tuple[str, ...] = ()
    region_name: str | None = None
    interfaces: tuple[str, ...] = ('internal', 'public')
    connect_timeout_seconds: float = 10
    read_timeout_seconds: float = 60
    num_retries: int = 3
    verify: bool | str = True
    client_certificate: tuple[str, str] | str | None = None

    @classmethod
    def from_conf(cls, conf: cfg.ConfigOpts) -> 'GlanceSettings':
        """Read the options.

        :raises nova_precache.exception.ConfigError: one is invalid
        """
        group = conf.glance
        certificate = (group.certfile, group.keyfile) if group.keyfile else group.certfile
        return cls(
            endpoint_override=group.endpoint_override,
            allowed_endpoints=_allowed_endpoints(group.allowed_endpoints or ()),
            region_name=group.region_name,
            interfaces=tuple(group.valid_interfaces),
            connect_timeout_seconds=group.connect_timeout_seconds,
            read_timeout_seconds=group.read_timeout_seconds,
            num_retries=group.num_retries,
            verify=not group.insecure and (group.cafile or True),
            client_certificate=certificate,
        )

    @property
    def is_anywhere_allowed(self) -> bool:
        """Whether a call may name any image service."""
        return not (self.endpoint_override or self.allowed_endpoints)

    def endpoint_of_call(self, named: object) -> str | None:
        """Return the endpoint that a call names, if it is used and allowed.

        :returns: None if the call names none, or ``endpoint_override`` is set
        :raises nova_precache.exception.InvalidInput: it is invalid, or not allowed
        """
        if self.endpoint_override or named is None:
            return None
        try:
            endpoint = endpoints.normalise(named)
        except exception.InvalidInput as exc:
            raise exception.InvalidInput(f'image_endpoint: {exc}') from exc
        if self.allowed_endpoints and endpoint not in self.allowed_endpoints:
            raise exception.InvalidInput(
                f'image_endpoint {endpoint:.200} is not in [glance] allowed_endpoints of this host'
            )
        return endpoint


def _allowed_endpoints(urls: Sequence[str]) -> tuple[str, ...]:
    try:
        return tuple(map(endpoints.normalise, urls))
    except exception.InvalidInput as exc:
        raise exception.ConfigError(f'[glance] allowed_endpoints: one is {exc}') from exc


def new_session(settings: GlanceSettings) -> ksa_session.Session:
    """Create a session, which many callers of one process may share.

    Its timeout for Keystone is the one for Glance.
    """
    return exchange.Session(
        session=exchange.new_session(),
        verify=settings.verify,
        cert=settings.client_certificate,
        timeout=settings.read_timeout_seconds,
    )


def new_outage() -> outages.Outage:
    """Create the shared outage log of Glance and Keystone for the callers of one process."""
    return outages.Outage('Image service of [glance]')


class GlanceImageService:
    """Glance as one caller sees it; implements ``image.service.ImageService``.

    :param auth: the caller's credentials, a keystoneauth plugin
    :param session: a session to share connections with other callers
    :param request_id: the request id that Glance logs; None: that of the request for which the
        calling thread works
    :param clock: in seconds; limits how often a fresh token is requested
    :param outage: to share the log of outages of Glance and Keystone
    :param credentials: what Keystone refuses if it does not accept ``auth``
    """

    def __init__(
        self,
        settings: GlanceSettings,
        auth: plugin.BaseAuthPlugin,
        session: ksa_session.Session | None = None,
        request_id: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        outage: outages.Outage | None = None,
        credentials: str = 'the credentials',
    ) -> None:
        self._settings = settings
        self._outage = outage or new_outage()
        self._credentials = credentials
        self._auth = auth
        self._session = session or new_session(settings)
        self._request_id = request_id
        self._clock = clock
        self._renewing = threading.Lock()
        self._renewed_at: float | None = None

    @classmethod
    def with_token(
        cls,
        settings: GlanceSettings,
        *,
        endpoint: str | None,
        token: str | None,
        fresh_token: Callable[[], str | None] | None = None,
        session: ksa_session.Session | None = None,
        request_id: str | None = None,
        outage: outages.Outage | None = None,
    ) -> 'GlanceImageService':
        """Create the service for a caller with a token, or for a Glance that needs none.

        :param endpoint: URL of Glance, unless ``[glance] endpoint_override`` is set
        :param fresh_token: called once by each refused request, to get another token
        :raises nova_precache.exception.ConfigError: neither gives an endpoint
        """
        url = settings.endpoint_override or endpoint
        if not url:
            raise exception.ConfigError(
                '[glance] endpoint_override is not set, and the request names no endpoint'
            )
        return cls(
            settings, _TokenAuth(url, token, fresh_token), session, request_id, outage=outage
        )

    def endpoint(self) -> str:
        """Return Glance's URL without version: configured, or from the service catalog.

        :raises nova_precache.exception.ImageServiceUnavailable: the catalog has none
        """
        with self._noted(), _keystone_errors(), deadline.within(ANSWER_SECONDS):
            url = self._settings.endpoint_override or self._session.get_endpoint(
                self._auth,
                service_type='image',
                interface=list(self._settings.interfaces),
                region_name=self._settings.region_name,
            )
        if not url:
            raise exception.ImageServiceUnavailable(
                'The service catalog has no endpoint of the image service'
            )
        return endpoints.without_version(url)

    def token(self, *, fresh: bool = False) -> str | None:
        """Return a token for these credentials, which another process may use.

        :param fresh: the last one was refused; another is requested at most once per
            ``FRESH_TOKEN_SECONDS``
        :raises nova_precache.exception.CredentialsRefused: Keystone refuses the credentials
        :raises nova_precache.exception.ImageServiceUnavailable: Keystone does not answer
        """
        with self._noted(), _keystone_errors(), deadline.within(ANSWER_SECONDS):
            if fresh:
                self._renew()
            return self._session.get_token(self._auth)

    def _renew(self) -> None:
        with self._renewing:
            now = self._clock()
            if self._renewed_at is None or now - self._renewed_at >= FRESH_TOKEN_SECONDS:
                self._renewed_at = now
                self._auth.invalidate()

    def show(self, image_id: str) -> model.Image:
        if not service.IMAGE_ID.fullmatch(image_id):
            raise exception.ImageNotUsable(image_id, 'could not be found.')
        document = self._get(image_id, f'/v2/images/{image_id}')
        with _show_errors(image_id):
            return _image(document)

    def is_member(self, image_id: str, project_id: str) -> bool:
        image = self.show(image_id)
        # Glance lists the members of shared images only.
        if image.visibility != 'shared' or project_id in {'', '.', '..'}:
            return False
        member = urllib.parse.quote(project_id, safe='')
        try:
            found = self._get(image_id, f'/v2/images/{image_id}/members/{member}')
        except exception.ImageNotUsable:
            return False
        return bool(found.get('member_id', project_id) == project_id)

    @contextlib.contextmanager
    def open(
        self, image_id: str, offset_bytes: int = 0, size_bytes: int | None = None
    ) -> Iterator[connections.GlanceConnection]:
        if not service.IMAGE_ID.fullmatch(image_id):
            raise exception.ImageGone(f'{image_id!r} is not the id of an image')
        response = self._get_part(image_id, offset_bytes)
        # Without close() the socket would stay open until the rest is received.
        with contextlib.closing(
            connections.GlanceConnection(response, image_id, offset_bytes, size_bytes)
        ) as connection:
            connection.check_data()
            yield connection

    def _get(self, image_id: str, path: str) -> dict[str, Any]:
        """Request a JSON document about an image."""
        with self._noted(), _show_errors(image_id), deadline.within(ANSWER_SECONDS):
            http: Any = self._http()  # Its get() returns a response and a document.
            _, document = http.get(
                path,
                timeout=self._timeouts(),
                connect_retries=self._settings.num_retries,
                status_code_retries=self._settings.num_retries,
                retriable_status_codes=_RETRIED_STATUS_CODES,
            )
        if not isinstance(document, dict):
            raise exception.ImageServiceUnavailable(
                f'Glance returned no JSON object for image {image_id}'
            )
        self._outage.over()
        return document

    @contextlib.contextmanager
    def _noted(self) -> Iterator[None]:
        """Record outages for the log; a success proves nothing, as the answer may be cached.

        :raises nova_precache.exception.CredentialsRefused: the login at Keystone was refused
        """
        try:
            yield
        except exception.ImageServiceUnavailable as exc:
            self._outage.began(exc)
            raise
        except ksa_exceptions.Unauthorized as exc:
            refusal = exception.CredentialsRefused(f'Keystone refuses {self._credentials}')
            self._outage.began(refusal)
            raise refusal from exc
        except exception.ImageNotUsable:
            self._outage.over()
            raise

    def _get_part(self, image_id: str, offset_bytes: int) -> requests.Response:
        """Request the data from an offset on; if ranges are refused, request all, once.

        Glance refuses ranges if its store cannot seek: RBD, S3, HTTP and others. Proxies and
        content delivery networks refuse them in ways of their own.
        """
        response = self._get_data(image_id, offset_bytes)
        if not offset_bytes or not _refuses_ranges(response.status_code):
            return response
        response.close()
        LOG.info(
            'Glance refuses a range of image %s (HTTP %d): requesting all of it',
            image_id,
            response.status_code,
        )
        return self._get_data(image_id, 0)

    def _get_data(self, image_id: str, offset_bytes: int) -> requests.Response:
        headers = {'Accept-Encoding': 'identity'}
        if offset_bytes:
            headers['Range'] = f'bytes={offset_bytes}-'
        LOG.debug('Reading image %s from byte %d', image_id, offset_bytes)
        with self._noted(), _open_errors(image_id):
            # The client's own get() reads a response into memory unless it is an octet stream,
            # and a proxy may label it otherwise.
            return adapter.Adapter.request(
                self._http(),
                f'/v2/images/{image_id}/file',
                'GET',
                headers=headers,
                stream=True,
                raise_exc=False,
                log=False,
                timeout=self._timeouts(),
            )

    def _http(self) -> adapter.Adapter:
        client = glanceclient.Client(
            '2',
            session=self._session,
            auth=self._auth,
            endpoint_override=self.endpoint(),
            global_request_id=self._request_id or context.current_id(),
        )
        http: adapter.Adapter = client.http_client
        return http

    def _timeouts(self) -> tuple[float, float]:
        return self._settings.connect_timeout_seconds, self._settings.read_timeout_seconds


class _TokenAuth(plugin.FixedEndpointPlugin):
    """A token received with a call; on a 401, keystoneauth invalidates it once per request."""

    def __init__(
        self, endpoint: str, token: str | None, fresh_token: Callable[[], str | None] | None
    ) -> None:
        super().__init__(endpoint)
        self._token = token
        self._fresh_token = fresh_token

    def get_token(self, session: ksa_session.Session) -> str | None:
        return self._token

    def get_headers(self, session: ksa_session.Session) -> dict[str, str]:
        """Return {} without a token, so that the request is sent: Glance may need none."""
        return {plugin.IDENTITY_AUTH_HEADER_NAME: self._token} if self._token else {}

    def invalidate(self) -> bool:
        if self._fresh_token is None:
            return False
        self._token = self._fresh_token()
        return self._token is not None


def _image(document: dict[str, Any]) -> model.Image:
    return model.Image(
        id=document['id'],
        name=document.get('name'),
        status=document['status'],
        size=document.get('size'),
        virtual_size=document.get('virtual_size'),
        disk_format=document.get('disk_format'),
        container_format=document.get('container_format'),
        visibility=document.get('visibility', 'private'),
        owner=document.get('owner'),
        checksum=document.get('checksum'),
        hash_algo=document.get('os_hash_algo'),
        hash_value=document.get('os_hash_value'),
        kernel_id=document.get('kernel_id'),
        ramdisk_id=document.get('ramdisk_id'),
    )


@contextlib.contextmanager
def _keystone_errors() -> Iterator[None]:
    try:
        yield
    except ksa_exceptions.Unauthorized:
        raise  # by Keystone; see _noted
    except (exception.OutOfTime, ksa_exceptions.ClientException) as exc:
        raise exception.ImageServiceUnavailable(f'Keystone: {exc}') from exc


@contextlib.contextmanager
def _show_errors(image_id: str) -> Iterator[None]:
    try:
        yield
    except glanceclient.exc.HTTPException as exc:
        raise _show_failure(image_id, exc) from exc
    except ksa_exceptions.Unauthorized:
        raise  # by Keystone; see _noted
    except redirects.RedirectFailed as exc:
        raise exception.ImageServiceUnavailable(
            f'Image {image_id} cannot be looked up: {exc}'
        ) from exc
    except (
        exception.OutOfTime,
        glanceclient.exc.BaseException,
        ksa_exceptions.ClientException,
        requests.RequestException,
    ) as exc:
        # The client wraps the text of keystoneauth, which has the URL, in the URL once more.
        is_wrapped = isinstance(exc.__context__, ksa_exceptions.ClientException)
        why = exc.__context__ if is_wrapped else exc
        raise exception.ImageServiceUnavailable(f'Glance does not answer: {why}') from exc
    except (AttributeError, LookupError, ValueError) as exc:
        # The client fails on an error whose body Glance would not send.
        raise exception.ImageServiceUnavailable(
            f'Something other than Glance answered about image {image_id}'
        ) from exc


def _show_failure(image_id: str, error: glanceclient.exc.HTTPException) -> exception.PrecacheError:
    if error.code == requests.codes.unauthorized:
        return exception.ImageUnauthorized(f'Glance refuses the token for image {image_id}')
    if error.code in {requests.codes.forbidden, requests.codes.not_found}:
        return exception.ImageNotUsable(image_id, 'could not be found.')
    return exception.ImageServiceUnavailable(f'Glance answered about image {image_id}: {error}')


@contextlib.contextmanager
def _open_errors(image_id: str) -> Iterator[None]:
    try:
        yield
    except ksa_exceptions.Unauthorized:
        raise  # by Keystone; see _noted
    except (
        exception.OutOfTime,
        ksa_exceptions.ClientException,
        requests.RequestException,
        exception.ImageServiceUnavailable,
    ) as exc:
        raise exception.DownloadInterrupted(f'Image {image_id} cannot be read: {exc}') from exc


def _refuses_ranges(code: int) -> bool:
    """Return whether the answer to a range request refuses ranges, or this range."""
    is_refused = 400 <= code < 500 and code not in _OWN_MEANING
    return is_refused or code == requests.codes.not_implemented
