# SPDX-License-Identifier: Apache-2.0
"""Dispatches WSGI requests to handlers: route, microversion, body, handler, answer."""

import hashlib
import json
import re
import sys
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import microversion_parse
import routes
import webob
import webob.dec
import webob.exc
from webob import acceptparse

from nova_precache import exception
from nova_precache.api import auth, microversion, recent, request as api_request
from nova_precache.api.operations import ANY_METHOD, Methods, Operation, Table
from nova_precache.context import RequestContext

CONTENT_TYPES = ('application/json', 'application/vnd.openstack.compute+json')

_METHODS_WITH_BODY = frozenset({'POST', 'PUT', 'PATCH'})
_METHODS_WITH_QUERY = frozenset({'GET', 'HEAD'})
# A parameter of a media type, such as version=2.1, which is ignored; but not its weight.
_PARAMETER = re.compile(r';(?!\s*q=)[^;,]*')


class UnsupportedMediaType(exception.PrecacheError):
    """The content type of the body is not supported."""

    def __init__(self) -> None:
        super().__init__('Unsupported Content-Type')


class MethodNotAllowed(exception.PrecacheError):
    """The resource supports only other methods."""

    def __init__(self, allowed: Iterable[str]) -> None:
        super().__init__('The method is not allowed for this resource.')
        self.allowed = sorted(allowed)


class MalformedBody(exception.InvalidInput):
    """The body is not JSON, or names no action."""

    def __init__(self) -> None:
        super().__init__('Malformed request body')


class InMemoryRequest(webob.Request):  # type: ignore[misc]
    """A request whose body stays in memory: webob would use a file and never close it.

    An outer layer limits the size of the body.
    """

    request_body_tempfile_limit = sys.maxsize


class Router:
    """A WSGI application over a table of paths, methods and operations."""

    def __init__(
        self, table: Table, services: api_request.Services, settings: api_request.Settings
    ) -> None:
        self._table = table
        self._mapper = _make_mapper(table)
        self._services = services
        self._settings = settings
        self._recent = recent.RecentAnswers()

    def knows(self, path: str) -> bool:
        """Return whether the table contains exactly this path, for any method."""
        return path in self._table

    @webob.dec.wsgify(RequestClass=InMemoryRequest)  # type: ignore[untyped-decorator]
    def __call__(self, request: webob.Request) -> webob.Response:
        path = request.environ['PATH_INFO']
        api = microversion.api_for_path(path)
        found = self._mapper.routematch(path)
        if found is None:
            return _no_such_path(api)
        variables, route = found
        methods = self._table[route.name]
        if methods.keys().isdisjoint({request.method, ANY_METHOD}):
            return _no_such_method(api, methods)
        version = microversion.negotiate(request.environ, request.headers, api)
        return self._handle(request, methods, api, version, variables)

    def _handle(
        self,
        request: webob.Request,
        methods: Methods,
        api: microversion.Api,
        version: microversion_parse.Version,
        variables: Mapping[str, str],
    ) -> webob.Response:
        if request.content_type not in {'', 'text/plain', *CONTENT_TYPES}:
            raise UnsupportedMediaType
        body = _read_body(request)
        operation = methods.get(request.method) or methods[ANY_METHOD]
        handler = _choose(operation, request, body, api)
        context = auth.context_of(request.environ)
        _refuse_foreign_project(context, variables.get('project_id'))
        query = _read_query(request, methods, api)
        if operation.since is not None and version < operation.since:
            raise api_request.NoSuchResource
        base_url = self._settings.public_endpoint or str(request.application_url)
        asked = api_request.Request(
            services=self._services,
            settings=self._settings,
            context=context,
            version=version,
            path=variables,
            query=query,
            body=body,
            base_url=base_url.rstrip('/'),
        )
        return self._answer(request, api, asked, handler)

    def _answer(
        self,
        request: webob.Request,
        api: microversion.Api,
        asked: api_request.Request,
        handler: api_request.Handler,
    ) -> webob.Response:
        def compute() -> webob.Response:
            response = _to_response(handler(asked), request)
            is_tagged = api is microversion.PRECACHE and request.method == 'GET'
            return _with_etag(response, asked.version) if is_tagged else response

        if request.method not in _METHODS_WITH_QUERY:
            try:
                return compute()
            finally:
                self._recent.forget()
        is_poll = api is microversion.PRECACHE and 'If-None-Match' in request.headers
        if not is_poll or request.method != 'GET':
            return compute()
        return _unless_known(self._recent.get(_identity(request, asked), compute), request)


def _make_mapper(table: Table) -> routes.Mapper:
    mapper = routes.Mapper(controller_scan=None, explicit=True)
    for path in table:
        mapper.connect(path, path)
    mapper.create_regs()
    return mapper


def _no_such_path(api: microversion.Api) -> webob.Response:
    # In Nova, the framework gives this answer: it has no fault body.
    if api is not microversion.PRECACHE:
        return webob.exc.HTTPNotFound()
    raise api_request.NoSuchResource


def _no_such_method(api: microversion.Api, methods: Methods) -> webob.Response:
    if api is not microversion.PRECACHE:
        return webob.exc.HTTPNotFound()
    raise MethodNotAllowed(methods)


def _read_body(request: webob.Request) -> Any:
    if request.method not in _METHODS_WITH_BODY:
        return None
    try:
        if not request.body:
            return None
        return json.loads(request.body.decode())
    except (ValueError, RecursionError, OSError) as error:
        raise MalformedBody from error


def _read_query(
    request: webob.Request, methods: Methods, api: microversion.Api
) -> Mapping[str, Sequence[str]]:
    # A query that Nova does not read may be invalid.
    is_read = api is microversion.PRECACHE or ANY_METHOD in methods
    if request.method not in _METHODS_WITH_QUERY and not is_read:
        return {}
    try:
        return dict(request.GET.dict_of_lists())
    except UnicodeDecodeError as error:
        raise exception.InvalidInput('Query string is not UTF-8 encoded') from error


def _choose(
    operation: Operation, request: webob.Request, body: Any, api: microversion.Api
) -> api_request.Handler:
    if operation.handler is not None:
        return operation.handler
    is_strange = api is microversion.PRECACHE and not isinstance(body, dict)
    if is_strange or not request.body:
        raise MalformedBody
    name = _action_name(body)
    if name not in operation.actions:
        raise exception.InvalidInput(f'There is no such action: {name}')
    return operation.actions[name].handler


def _action_name(body: Any) -> str:
    """Return the single key of the body; odd bodies get the same errors as in Nova."""
    if isinstance(body, dict | list | str) and len(body) != 1:
        raise MalformedBody
    if not isinstance(body, dict):
        raise api_request.NoSuchResource
    return str(next(iter(body)))


def _refuse_foreign_project(context: RequestContext, in_path: str | None) -> None:
    if in_path is None or context.is_of_any_project:
        return
    if in_path != context.project_id:
        raise exception.InvalidInput(
            f"Malformed request URL: URL's project_id '{in_path}' doesn't match "
            f"Context's project_id '{context.project_id}'"
        )


def _to_response(reply: api_request.Reply, request: webob.Request) -> webob.Response:
    body = b'' if reply.body is None else json.dumps(reply.body).encode()
    headers = [('Content-Type', _content_type(request)), *reply.headers.items()]
    return webob.Response(status=reply.status, body=body, headerlist=headers)


def _identity(request: webob.Request, asked: api_request.Request) -> Hashable:
    """Return what the answer depends on, besides the time: what is asked, and by whom."""
    caller = asked.context.to_policy_values()
    rights = json.dumps([dict(caller), asked.context.is_admin], sort_keys=True, default=str)
    return asked.base_url, request.path_qs, _content_type(request), str(asked.version), rights


def _with_etag(response: webob.Response, version: microversion_parse.Version) -> webob.Response:
    """Add an ETag: the same body may be of another media type or microversion."""
    form = f'{response.content_type} {version}\n'.encode()
    response.etag = hashlib.sha256(form + response.body).hexdigest()
    response.cache_control = 'private, no-cache'
    return response


def _unless_known(response: webob.Response, request: webob.Request) -> webob.Response:
    """Replace an answer by 304 if the caller has it already."""
    if response.etag not in request.if_none_match:
        return response
    kept = [(name, response.headers[name]) for name in ('ETag', 'Cache-Control')]
    return webob.Response(status=304, headerlist=kept)


def _content_type(request: webob.Request) -> str:
    accepted = _PARAMETER.sub('', request.headers.get('Accept', '*/*'))
    offers = acceptparse.create_accept_header(accepted).acceptable_offers(CONTENT_TYPES)
    return str(offers[0][0]) if offers else CONTENT_TYPES[0]
