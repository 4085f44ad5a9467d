# SPDX-License-Identifier: Apache-2.0
"""openstack precache create, list, show, cancel, retry, pause, resume, request set."""

import argparse
from collections.abc import Sequence
from typing import Any, ClassVar

from osc_lib import exceptions

from nova_precache import model
from nova_precache.osc import arguments, client, columns, listing, resolving, tables, waiting
from nova_precache.osc.client import Json


class Target(columns.Nothing):
    """The aggregate or the hosts of a request; only the number of several hosts."""

    def human_readable(self) -> str:
        several = self._value.count(', ') + 1
        return self._value if several == 1 else f'{several} hosts'


def _target(request: Json) -> str:
    """Return the name of a request's aggregate, or of its hosts."""
    if request['aggregate'] is not None:
        return str(request['aggregate']['name'])
    return ', '.join(request['hosts'] or ())


def _percent(request: Json) -> int | None:
    if request['status'] == model.RequestStatus.COMPLETED:
        return 100
    return columns.percent(request['bytes_done'], request['bytes_total'])


class List(listing.Lister):
    """List requests, the newest first."""

    collection = 'requests'
    sort_keys = ('created_at', 'finished_at', 'priority', 'status')
    first_columns = (
        columns.Column('ID', 'id'),
        columns.Column('Status', 'status'),
        columns.Column('Done', _percent, columns.Percent),
        columns.Column('For', _target, Target, elastic=True),
    )
    more_columns = (
        columns.Column('Images', 'images', columns.Lines, elastic=True, named=True),
        columns.Column('Hosts', 'hosts_total'),
        columns.Column('Hosts Done', 'hosts_done'),
        columns.Column('Bytes Done', 'bytes_done', columns.Size),
        columns.Column('Bytes Total', 'bytes_total', columns.Size),
        columns.Column('Rate', 'rate_bytes', columns.Rate),
        columns.Column('ETA', 'eta_seconds', columns.Duration),
        columns.Column('Created At', 'created_at', columns.Time),
        columns.Column('Finished At', 'finished_at', columns.Time),
        columns.Column('Priority', 'priority'),
        columns.Column('Counts', 'counts', columns.Entries),
        columns.Column('Reason', 'reason', elastic=True),
        columns.Column('Description', 'description', elastic=True),
        columns.Column('Image IDs', 'images', columns.Lines),
        columns.Column('Project', 'project_id'),
        columns.Column('User', 'user_id'),
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add('--status', metavar='<status>', help='list only requests in this state')
        arguments.add_aggregate(parser, 'requests')
        add(
            '--image',
            metavar='<image>',
            help='list only requests for this image (name or ID)',
        )
        add(
            '--since',
            metavar='<time>',
            type=arguments.past_moment,
            help='list only requests created since this time: ISO 8601, or an age such as 2h',
        )
        add('--pin', metavar='<pin>', help='list only requests created by this pin (ID)')
        arguments.add_project(parser, 'requests')

    def query(self, parsed_args: argparse.Namespace) -> client.Json:
        said = {key: getattr(parsed_args, key) for key in ('status', 'aggregate', 'since', 'pin')}
        name = parsed_args.image
        image_id = None if name is None else resolving.image_id(self.app, name)
        project_id = resolving.project_id(self.app, parsed_args.project)
        return {'image': image_id, 'project_id': project_id, **said}


class _Followed(tables.ShowOne):
    """The base of commands that show a request and may wait until it ends.

    :cvar waits: whether there is ``--wait``
    """

    waits: ClassVar[bool] = True
    _exit_status = 0

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        if self.waits:
            arguments.add_wait(parser)
        return parser

    def run(self, parsed_args: argparse.Namespace) -> int:
        if self.waits and parsed_args.timeout is not None and not parsed_args.wait:
            raise exceptions.CommandError('--timeout: needs --wait')
        return super().run(parsed_args) or self._exit_status

    def follow(self, requests: Sequence[Json], parsed_args: argparse.Namespace) -> Sequence[Json]:
        """Wait for requests if the arguments say so, and return them as they are then."""
        if not (self.waits and parsed_args.wait):
            return requests
        waited = waiting.wait_for_completion(self.app, requests, parsed_args.timeout)
        self._exit_status = waited.exit_status
        return waited.requests


class Create(_Followed):
    """Create a request to cache images on hosts before instances boot from them."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        arguments.add_subject(parser)
        parser.add_argument(
            '--client-request-id',
            metavar='<id>',
            help='your own ID for the request; repeating it returns the existing request',
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        images = resolving.image_ids(self.app, parsed_args.images)
        body = arguments.subject(parsed_args, images)
        body |= arguments.given({'client_request_id': parsed_args.client_request_id})
        answer = client.of(self.app).post('requests', body={'request': body})
        (request,) = self.follow([answer['request']], parsed_args)
        return self.record(request, parsed_args)


class Show(_Followed):
    """Show a request with its progress and rate."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('request', metavar='<request>', help='request (ID)')
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        answer = client.of(self.app).get('requests', parsed_args.request)
        (request,) = self.follow([answer['request']], parsed_args)
        return self.record(request, parsed_args)


class Set(tables.ShowOne):
    """Change options of a request that waits or runs."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('request', metavar='<request>', help='request (ID)')
        arguments.add_changes(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        body = {'request': arguments.changes(parsed_args)}
        answer = client.of(self.app).patch('requests', parsed_args.request, body=body)
        return self.record(answer['request'], parsed_args)


class _Action(_Followed):
    """The base of actions on requests: each is attempted, and errors are collected."""

    action: ClassVar[str]
    _refused: Sequence[str] = ()

    def options(self, parsed_args: argparse.Namespace) -> Json | None:
        """Return the options of the action, None without any."""
        return None

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument('requests', metavar='<request>', nargs='+', help='requests (IDs)')
        return parser

    def run(self, parsed_args: argparse.Namespace) -> int:
        status = super().run(parsed_args)
        if self._refused:
            raise exceptions.CommandError('\n'.join(self._refused))
        return status

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        """Act on each request; of one show all fields, of several the status."""
        ids = list(dict.fromkeys(parsed_args.requests))
        body = {self.action: self.options(parsed_args)}
        done, self._refused = _attempt(client.of(self.app), ids, body)
        if not done:
            raise exceptions.CommandError('\n'.join(self._refused))
        done = self.follow(done, parsed_args)
        if len(ids) == 1:
            return self.record(done[0], parsed_args)
        return self.record({each['id']: each['status'] for each in done}, parsed_args)


class Cancel(_Action):
    """Cancel requests: cancel waiting tasks, stop downloads that no other request needs."""

    action = 'cancel'
    waits = False

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            '--keep-partial',
            action='store_true',
            help='keep partial downloads on the hosts so that a retry can resume them',
        )
        return parser

    def options(self, parsed_args: argparse.Namespace) -> Json | None:
        return {'keep_partial': True} if parsed_args.keep_partial else None


class Pause(_Action):
    """Pause requests: stop their downloads and keep the received bytes."""

    action = 'pause'
    waits = False


class Resume(_Action):
    """Resume paused requests."""

    action = 'resume'


class Retry(_Action):
    """Retry the failed, skipped, expired and cancelled tasks of requests."""

    action = 'retry'

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            '--host',
            metavar='<host>',
            dest='hosts',
            action='append',
            help='retry only the tasks of this host (repeat option for several hosts)',
        )
        arguments.add_window(parser)
        return parser

    def options(self, parsed_args: argparse.Namespace) -> Json | None:
        hosts = arguments.given({'hosts': parsed_args.hosts})
        return {**hosts, **arguments.window(parsed_args)} or None


def _attempt(
    service: client.ApiClient, ids: Sequence[str], body: Json
) -> tuple[Sequence[Json], Sequence[str]]:
    """Act on each request; return those that accepted, and the errors of the others."""
    accepted: list[Json] = []
    refused: list[str] = []
    for request_id in ids:
        try:
            answer = service.post('requests', request_id, 'action', body=body)
            accepted.append(answer['request'])
        except client.ApiError as error:
            said = str(error)
            refused.append(said if request_id in said else f'{request_id}: {said}')
    return accepted, refused
