# SPDX-License-Identifier: Apache-2.0
"""openstack precache estimate: the cost of a request before it is made."""

import argparse
from typing import Any

from cliff import columns as cliff

from nova_precache.osc import arguments, client, columns, resolving, tables


class Hosts(cliff.FormattableColumn[list[client.Json]]):
    """The hosts of an estimate, one per line."""

    def human_readable(self) -> str:
        return '\n'.join(_line(host) for host in self._value)


class Estimate(tables.ShowOne):
    """Estimate the bytes to move, the space needed and the duration of a request."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        arguments.add_subject(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        images = resolving.image_ids(self.app, parsed_args.images)
        body = {'request': arguments.subject(parsed_args, images)}
        estimate = _ask(client.of(self.app), body)
        glance = {f'glance_{key}': value for key, value in estimate['glance'].items()}
        names, values = self.record({**estimate['totals'], **glance}, parsed_args)
        return (*names, 'by_host'), (*values, Hosts(estimate['hosts']))


def _ask(service: client.ApiClient, body: client.Json) -> client.Json:
    """Fetch all pages; only the hosts are continued on the later ones."""
    page = service.post('estimate', body=body)
    estimate = page['estimate']
    while (marker := client.next_marker(page, 'hosts')) is not None:
        page = service.post('estimate', body=body, query={'marker': marker})
        estimate['hosts'].extend(page['estimate']['hosts'])
    return dict(estimate)


def _line(host: client.Json) -> str:
    if host['status'] != 'up':
        return f'{host["host"]}: {host["reason"] or host["status"]}'
    moved = f'{host["host"]}: {columns.size(host["bytes_to_move"])} to move'
    free = '' if host['free_bytes'] is None else f', {columns.size(host["free_bytes"])} free'
    seconds = host['seconds']
    took = '' if seconds is None else f', {columns.duration(seconds)}'
    short = f', NOT ENOUGH SPACE: needs {columns.size(host["space_needed_bytes"])}'
    return f'{moved}{free}{took}{short if host["fits"] is False else ""}'
