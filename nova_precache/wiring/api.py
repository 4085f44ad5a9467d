# SPDX-License-Identifier: Apache-2.0
"""Builds the API, as a WSGI application and as a server."""

from collections.abc import Callable

from oslo_config import cfg

from nova_precache import context, policy, rpc
from nova_precache.api import app, auth, request
from nova_precache.cells import names, novadb
from nova_precache.conductor import rpcapi as conductor_rpcapi
from nova_precache.db import hearing, jobs, pins, request_actions
from nova_precache.db.engine import session as db_session
from nova_precache.wiring import agents, common, computes, images, process, stock
from nova_precache.wsgi import origins, server


def application(conf: cfg.ConfigOpts, database: db_session.Database) -> server.Application:
    """Build the WSGI application."""
    transport = rpc.connect_own(conf)
    conductor = conductor_rpcapi.ConductorAPI(transport, process.conductor_cap(conf))
    aggregates = novadb.open_inventory(conf, database)
    cells = names.CellNames(aggregates)
    services = request.Services(
        inventory=aggregates,
        requests=common.request_store(conf, database),
        actions=request_actions.RequestActions(database),
        agents=computes.host_store(conf, database, aggregates),
        caches=common.reported_caches(conf, database),
        rates=jobs.Jobs(database, conf.conductor.claim_lease_seconds),
        pins=pins.Pins(database),
        services=common.service_store(conf, database),
        hearings=hearing.Hearings(database),
        cell_names=cells,
        count_hosts=computes.host_counter(conf, database, aggregates),
        explanations=common.explanation_store(conf, database, cells),
        images_for=images.of_callers(conf),
        wake=lambda: conductor.work_available(context.admin_context()),
        why_unsupported=_why_unsupported(conf, transport),
        remove=stock.refuse_removal if common.is_stock(conf) else conductor.remove_image,
        enforcer=policy.Enforcer(conf),
        snapshot=database.one_snapshot,
    )
    return app.build(conf, services)


def new_server(conf: cfg.ConfigOpts, database: db_session.Database) -> server.HttpServer:
    """Build the HTTP server of the API.

    :raises nova_precache.exception.ConfigError: noauth2 would listen beyond the loopback
    """
    group = conf.api
    auth.refuse_exposure(group.auth_strategy, group.bind_host)
    certificate = server.Certificate(group.cert_file, group.key_file) if group.cert_file else None
    served = application(conf, database)
    if group.auth_strategy == 'noauth2':
        served = origins.OriginGuard(
            served,
            conf.cors.allowed_origin or (),
            group.public_endpoint,
            ', [api] public_endpoint or [cors] allowed_origin',
        )
    return server.HttpServer(
        served,
        group.bind_host,
        group.bind_port,
        group.threads,
        certificate,
        # The pipeline refuses a body slightly over the limit, with Nova's message.
        max_body_bytes=2 * conf.oslo_middleware.max_request_body_size,
        reserved_path=app.Healthcheck.PATH,
    )


def _why_unsupported(conf: cfg.ConfigOpts, transport: rpc.Transport) -> Callable[[], str | None]:
    if common.is_stock(conf):
        return stock.compute_api(conf, transport, stock.compute_cap(conf)).why_unsupported
    return agents.compute_api(conf, transport, agents.compute_cap(conf)).why_unsupported
