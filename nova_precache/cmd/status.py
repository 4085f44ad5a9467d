# SPDX-License-Identifier: Apache-2.0
"""nova-precache-status: check that a deployment is ready for the services of this release."""

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from oslo_config import cfg
from oslo_log import log
from oslo_upgradecheck import common_checks, upgradecheck
from packaging import version

from nova_precache import conf as configuration, exception, model, outages, policy
from nova_precache.cells import novadb
from nova_precache.cmd import reachability, running
from nova_precache.db import standing
from nova_precache.db.engine import errors, schema, session
from nova_precache.wiring import common, process as wiring_process

SHOWN = 5

Check = Callable[['Checks'], upgradecheck.Result]


def main() -> None:
    running.exit_with(_main)


def _main() -> int:
    conf = cfg.ConfigOpts()
    configuration.register(conf)
    conf.set_default('use_stderr', True)  # as for the other commands
    checks = Checks(conf)
    conf.register_cli_opt(
        cfg.SubCommandOpt('command', title='Commands', handler=lambda group: _add(group, checks))
    )
    configuration.read(conf, sys.argv[1:])
    upgradecheck.CONF = conf  # as its own main does
    return upgradecheck.run(conf)


def _add(subparsers: Any, checks: 'Checks') -> None:
    text = 'check whether the deployment is ready for the services of this release'
    parser = subparsers.add_parser('upgrade', help=text, description=text)
    parser.set_defaults(action_fn=checks.check)
    parser.add_argument('check', choices=['check'], help='the only action')
    parser.add_argument('--json', action='store_true', help='print the results as JSON')


class Checks(upgradecheck.UpgradeCommands):
    """The upgrade checks; each is a method whose result names the problem."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        super().__init__()
        self._conf = conf

    def check(self) -> upgradecheck.Code:
        log.setup(self._conf, configuration.PROJECT)
        outages.keep_short(logging.getLogger().handlers)
        logging.getLogger(outages.__name__).setLevel(logging.CRITICAL)  # the table has them
        return super().check()

    def _check_schema(self) -> upgradecheck.Result:
        """Check that the schema is that of this release."""
        with session.connect(self._conf) as database:
            found = schema.find(database)
        if found.revision is None or found.is_older:
            return _failure(
                f'The database is at revision {found.revision or "none"}, but this release needs '
                f'{found.newest}: run nova-precache-manage db sync.'
            )
        if found.is_newer:
            return _warning(
                f'The database is at revision {found.revision}, from a later release; '
                f'this release needs {found.newest}.'
            )
        return _success()

    def _check_policy_format(self) -> upgradecheck.Result:
        """Check that the policy file is YAML."""
        return common_checks.check_policy_json(self, self._conf)

    def _check_policy_names(self) -> upgradecheck.Result:
        """Check that the policy file can be read, and that our rules in it are known."""
        unknown = policy.Enforcer(self._conf).unknown_rules()
        if unknown:
            return _warning(f'The policy file has unknown or removed rules: {_some(unknown)}.')
        return _success()

    def _check_cells(self) -> upgradecheck.Result:
        """Check that the broker of each enabled cell takes a message."""
        cells = self._enabled_cells()
        if not cells:
            return _warning('There are no cells: create one with nova-precache-manage cell create.')
        asks = {_label(cell): reachability.broker(self._conf, cell) for cell in cells}
        return _unreachable('broker', reachability.ask_all(asks), may_fail=True)

    def _check_cell_databases(self) -> upgradecheck.Result:
        """Check that the database of each enabled cell can be read.

        Only with stock nova-computes the conductors need it.
        """
        is_needed = common.is_stock(self._conf)
        asks = {
            _label(cell): reachability.database(cell)
            for cell in self._enabled_cells()
            if is_needed or cell.database_connection
        }
        return _unreachable('database', reachability.ask_all(asks), may_fail=is_needed)

    def _enabled_cells(self) -> Sequence[model.Cell]:
        with schema.open_current(self._conf) as database:
            cells = novadb.open_inventory(self._conf, database).list_cells()
        return [cell for cell in cells if not cell.disabled]

    def _check_conductors(self) -> upgradecheck.Result:
        """Check that a conductor is up, and that none has ended without a clean stop."""
        conductors = self._list_services(model.Binary.CONDUCTOR)
        if not conductors:
            return upgradecheck.Result(
                upgradecheck.Code.SUCCESS, 'No conductor has reported to this database yet.'
            )
        away = [each for each in conductors if each.status is not model.HostStatus.UP]
        named = _some([f'{each.host} ({each.reason})' for each in away])
        if len(away) == len(conductors):
            return _warning(f'No conductor is up: {named}. Until one is, no request moves on.')
        if any(not (each.reason or '').startswith(standing.STOPPED) for each in away):
            return _warning(f'{len(away)} of {len(conductors)} conductors are not up: {named}.')
        return _success()

    def _check_services(self) -> upgradecheck.Result:
        """Check that the conductors and APIs that are up are of this release."""
        found = [
            *self._list_services(model.Binary.CONDUCTOR),
            *self._list_services(model.Binary.API),
        ]
        versions = [
            (f'{each.binary} on {each.host}', each.version)
            for each in found
            if each.status is model.HostStatus.UP
        ]
        advice = 'Restart them with this release: the conductors first.'
        return _differing('conductors and APIs', versions, advice)

    def _list_services(self, binary: model.Binary) -> Sequence[model.Service]:
        with schema.open_current(self._conf) as database:
            return common.service_store(self._conf, database).list_page(binary=binary)

    def _check_agents(self) -> upgradecheck.Result:
        """Check that the computes are of this release."""
        with schema.open_current(self._conf) as database:
            agents = common.agent_store(self._conf, database).list()
        versions = [(agent.host, agent.version) for agent in agents]
        advice = 'They continue to work; upgrade them after the conductors.'
        return _differing('computes', versions, advice)

    _upgrade_checks = (
        ('Database schema', lambda self: _run_check(self._check_schema)),
        ('Policy file format', lambda self: _run_check(self._check_policy_format)),
        ('Policy rules', lambda self: _run_check(self._check_policy_names)),
        ('Conductors', lambda self: _run_check(self._check_conductors)),
        ('Conductors and APIs', lambda self: _run_check(self._check_services)),
        ('Cells', lambda self: _run_check(self._check_cells)),
        ('Cell databases', lambda self: _run_check(self._check_cell_databases)),
        ('Computes', lambda self: _run_check(self._check_agents)),
    )


def _run_check(check: Callable[[], upgradecheck.Result]) -> upgradecheck.Result:
    """Run a check; an error that prevents it becomes its result, a failure."""
    try:
        with errors.translate_db_errors():
            return check()
    except exception.PrecacheError as exc:
        return _failure(str(exc))


def _label(cell: model.Cell) -> str:
    return f'{cell.name} {cell.uuid}'.strip()


def _unreachable(
    what: str, problems: Mapping[str, reachability.Problem], *, may_fail: bool
) -> upgradecheck.Result:
    """Name the cells with a problem; those that an operator must change come first."""
    if not problems:
        return _success()
    ordered = sorted(problems.items(), key=lambda item: not item[1].is_refused)
    named = _some([f'{cell} ({problem.reason})' for cell, problem in ordered])
    details = f'Cells whose {what} cannot be reached: {named}.'
    is_failure = may_fail and ordered[0][1].is_refused
    return _failure(details) if is_failure else _warning(details)


def _differing(
    what: str, versions: Sequence[tuple[str, str | None]], advice: str
) -> upgradecheck.Result:
    """Name those that are of an earlier release, and those that are of a later one."""
    own = version.Version(wiring_process.version())
    found = [(f'{name} ({text})', _parse(text)) for name, text in versions]
    older = [shown for shown, parsed in found if parsed is None or parsed < own]
    newer = [shown for shown, parsed in found if parsed is not None and parsed > own]
    details = [
        f'{len(some)} of {len(versions)} {what} are of {which} release than {own}: {_some(some)}.'
        for which, some in (('an earlier', older), ('a later', newer))
        if some
    ]
    return _warning(' '.join([*details, advice])) if details else _success()


def _parse(found: str | None) -> version.Version | None:
    try:
        return version.Version(found or '')
    except version.InvalidVersion:
        return None


def _some(names: list[str]) -> str:
    shown = ', '.join(names[:SHOWN])
    return f'{shown} and {len(names) - SHOWN} more' if len(names) > SHOWN else shown


def _success() -> upgradecheck.Result:
    return upgradecheck.Result(upgradecheck.Code.SUCCESS)


def _warning(details: str) -> upgradecheck.Result:
    return upgradecheck.Result(upgradecheck.Code.WARNING, details)


def _failure(details: str) -> upgradecheck.Result:
    return upgradecheck.Result(upgradecheck.Code.FAILURE, details)
