# SPDX-License-Identifier: Apache-2.0
"""openstack precache create, list, show, cancel, retry, pause, resume: requests."""

import argparse
from typing import Any

from osc_lib.command import command

from nova_precache.osc import arguments, client, columns, listing, resolving, waiting
from nova_precache.osc.client import Json

SORT_KEYS = ('created_at', 'finished_at', 'priority', 'status')


def _target(request: Json) -> str:
    """Return the name of a request's aggregate, or of its hosts."""
    if request['aggregate'] is not None:
        return str(request['aggregate']['name'])
    return ', '.join(request['hosts'] or ())


class List(listing.Lister):
    """List requests, the newest first."""

    collection = 'requests'
    first_columns = (
        columns.Column('ID', 'id'),
        columns.Column('Status', 'status'),
        columns.Column('For', _target),
        columns.Column('Images', lambda request: len(request['images'])),
        columns.Column('Hosts', 'hosts_total'),
        columns.Column('Hosts Done', 'hosts_done'),
        columns.Column('Bytes Done', 'bytes_done', columns.Size),
        columns.Column('Bytes Total', 'bytes_total', columns.Size),
        columns.Column('Created At', 'created_at'),
    )
    more_columns = (
        columns.Column('Finished At', 'finished_at'),
        columns.Column('Rate', 'rate_bytes', columns.Rate),
        columns.Column('ETA', 'eta_seconds', columns.Duration),
        columns.Column('Priority', 'priority'),
        columns.Column('Counts', 'counts', columns.Mapping),
        columns.Column('Reason', 'reason'),
        columns.Column('Description', 'description'),
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add('--status', metavar='<status>', help='list only requests in this state')
        add(
            '--aggregate',
            metavar='<aggregate>',
            help='list only requests for this aggregate (name, ID or UUID)',
        )
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
        add('--sort-key', choices=SORT_KEYS, help='sort by this field (default: created_at)')
        add('--sort-dir', choices=('asc', 'desc'), help='sort direction (default: desc)')

    def query(self, parsed_args: argparse.Namespace) -> client.Json:
        keys = ('status', 'aggregate', 'since', 'pin', 'sort_key', 'sort_dir')
        said = {key: getattr(parsed_args, key) for key in keys}
        name = parsed_args.image
        image_id = None if name is None else resolving.image_id(self.app, name)
        return {'image': image_id, **said}


class _Followed(command.ShowOne):
    """The base of commands that show a request and may wait until it ends."""

    _succeeded = True

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        arguments.add_wait(parser)
        return parser

    def run(self, parsed_args: argparse.Namespace) -> int:
        return super().run(parsed_args) or int(not self._succeeded)

    def follow(self, request: Json, parsed_args: argparse.Namespace) -> Any:
        if parsed_args.wait:
            request, self._succeeded = waiting.wait_for_completion(client.of(self.app), request)
        return columns.record(request)


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
        return self.follow(answer['request'], parsed_args)


class Show(_Followed):
    """Show a request with its progress and rate."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        return _add_request(super().get_parser(prog_name))

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        answer = client.of(self.app).get('requests', parsed_args.request)
        return self.follow(answer['request'], parsed_args)


class Cancel(command.ShowOne):
    """Cancel a request: cancel waiting tasks, stop downloads that no other request needs."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = _add_request(super().get_parser(prog_name))
        parser.add_argument(
            '--keep-partial',
            action='store_true',
            help='keep partial downloads on the hosts so that a retry can resume them',
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        options = {'keep_partial': True} if parsed_args.keep_partial else None
        return columns.record(_act(self, parsed_args.request, 'cancel', options))


class Pause(command.ShowOne):
    """Pause a request: stop its downloads and keep the received bytes."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        return _add_request(super().get_parser(prog_name))

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        return columns.record(_act(self, parsed_args.request, 'pause'))


class Resume(_Followed):
    """Resume a paused request."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        return _add_request(super().get_parser(prog_name))

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        return self.follow(_act(self, parsed_args.request, 'resume'), parsed_args)


class Retry(_Followed):
    """Retry the failed, skipped, expired and cancelled tasks of a request."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = _add_request(super().get_parser(prog_name))
        arguments.add_window(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        options = arguments.window(parsed_args) or None
        return self.follow(_act(self, parsed_args.request, 'retry', options), parsed_args)


def _add_request(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument('request', metavar='<request>', help='request (ID)')
    return parser


def _act(asked: command.Command, request: str, action: str, options: Json | None = None) -> Json:
    answer = client.of(asked.app).post('requests', request, 'action', body={action: options})
    return dict(answer['request'])
