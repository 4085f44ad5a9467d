# SPDX-License-Identifier: Apache-2.0
"""nova-precache-status: check that a deployment is ready for the services of this release."""

import logging
import sys
from collections.abc import Callable

from oslo_config import cfg
from oslo_log import log
from oslo_upgradecheck import common_checks, upgradecheck
from packaging import version

from nova_precache import conf as configuration, exception, outages, policy, rpc
from nova_precache.cells import novadb
from nova_precache.cmd import running
from nova_precache.db.engine import errors, schema, session
from nova_precache.wiring import common

SHOWN = 5

Check = Callable[['Checks'], upgradecheck.Result]


def main() -> None:
    running.exit_with(_main)


def _main() -> int:
    conf = cfg.ConfigOpts()
    configuration.register(conf)
    conf.set_default('use_stderr', True)  # as for the other commands
    # Alembic logs the kind of database at each check.
    log.set_defaults(default_log_levels=[*log.get_default_log_levels(), 'alembic=WARN'])
    return upgradecheck.main(conf, configuration.PROJECT, Checks(conf), sys.argv[1:])


class Checks(upgradecheck.UpgradeCommands):
    """The upgrade checks; each is a method whose result names the problem."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        super().__init__()
        self._conf = conf

    def check(self) -> upgradecheck.Code:
        log.setup(self._conf, configuration.PROJECT)
        outages.keep_short(logging.getLogger().handlers)
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
        """Check that the URL of each cell's broker can be parsed."""
        with schema.open_current(self._conf) as database:
            cells = novadb.open_inventory(self._conf, database).list_cells()
        problems = [
            f'{cell.name} ({cell.transport_problem or "the URL cannot be parsed"})'
            for cell in cells
            if rpc.describe_url(self._conf, cell.transport_url) in {'', rpc.UNREADABLE}
        ]
        if problems:
            return _failure(f'Cells whose broker cannot be reached: {_some(problems)}.')
        if not cells:
            return _warning('There are no cells: create one with nova-precache-manage cell create.')
        return _success()

    def _check_agents(self) -> upgradecheck.Result:
        """Check that no compute is of an earlier release."""
        with schema.open_current(self._conf) as database:
            agents = common.agent_store(self._conf, database).list()
        older = [f'{agent.host} ({agent.version})' for agent in agents if _is_older(agent.version)]
        if older:
            return _warning(
                f'{len(older)} of {len(agents)} computes are of an earlier release than '
                f'{common.version()}: {_some(older)}. They continue to work; upgrade them after '
                'the conductors.'
            )
        return _success()

    _upgrade_checks = (
        ('Database schema', lambda self: _run_check(self._check_schema)),
        ('Policy file format', lambda self: _run_check(self._check_policy_format)),
        ('Policy rules', lambda self: _run_check(self._check_policy_names)),
        ('Cells', lambda self: _run_check(self._check_cells)),
        ('Computes', lambda self: _run_check(self._check_agents)),
    )


def _run_check(check: Callable[[], upgradecheck.Result]) -> upgradecheck.Result:
    """Run a check; an error that prevents it becomes its result, a failure."""
    try:
        with errors.translate_db_errors():
            return check()
    except exception.PrecacheError as exc:
        return _failure(str(exc))


def _is_older(found: str | None) -> bool:
    try:
        return version.Version(found or '') < version.Version(common.version())
    except version.InvalidVersion:
        return True


def _some(names: list[str]) -> str:
    shown = ', '.join(names[:SHOWN])
    return f'{shown} and {len(names) - SHOWN} more' if len(names) > SHOWN else shown


def _success() -> upgradecheck.Result:
    return upgradecheck.Result(upgradecheck.Code.SUCCESS)


def _warning(details: str) -> upgradecheck.Result:
    return upgradecheck.Result(upgradecheck.Code.WARNING, details)


def _failure(details: str) -> upgradecheck.Result:
    return upgradecheck.Result(upgradecheck.Code.FAILURE, details)
