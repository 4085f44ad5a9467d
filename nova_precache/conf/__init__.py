# SPDX-License-Identifier: Apache-2.0
"""The options, one module a group; each is registered on a conf passed in."""

import logging
from collections.abc import Sequence
from types import ModuleType

import oslo_messaging
from keystoneauth1 import loading
from oslo_concurrency import lockutils  # noqa: F401 - registers its options on the global conf
from oslo_config import cfg
from oslo_db import options as db_options
from oslo_log import log
from oslo_messaging import opts as messaging_opts
from oslo_messaging._metrics import client as messaging_metrics
from oslo_messaging._tracing import client as messaging_tracing

from nova_precache import outages
from nova_precache.conf import (
    api,
    api_database,
    compute,
    conductor,
    glance,
    image_cache,
    libvirt,
    metrics,
    notifications,
    service,
    upgrade_levels,
)

MODULES: tuple[ModuleType, ...] = (
    service,
    api,
    api_database,
    compute,
    conductor,
    glance,
    image_cache,
    libvirt,
    metrics,
    notifications,
    upgrade_levels,
)
# Nova's exchange: consumers of its notifications get those of this service, too.
EXCHANGE = 'nova'
PROJECT = 'nova-precache'


def new(
    args: Sequence[str] = (),
    config_files: Sequence[str] | None = None,
    program: str | None = None,
) -> cfg.ConfigOpts:
    """Create a separate conf with every option registered.

    :param args: command line arguments, such as ``--config-file PATH``
    :param config_files: files to read instead of the default ones
    :param program: its own file is one of the default ones; None: the running program
    :raises oslo_config.cfg.Error: for an unknown argument or a bad value
    """
    conf = cfg.ConfigOpts()
    register(conf)
    _read(conf, args, config_files, program)
    return conf


def set_up_process(
    args: Sequence[str] = (),
    config_files: Sequence[str] | None = None,
    program: str | None = None,
    cli_options: Sequence[cfg.Opt] = (),
    use_stderr: bool = False,
) -> cfg.ConfigOpts:
    """Read the configuration of a single-service process into oslo.config's global conf.

    Libraries read the global conf if none is passed to them: lockutils, for example, by which
    oslo.messaging numbers its queues. Parameters and errors are those of :func:`new`.

    :param cli_options: in addition to those of every command
    :param use_stderr: default of the option: log to standard error, too
    """
    conf = cfg.CONF
    conf.reset()  # clear the values of an earlier command, as in tests
    register(conf)
    conf.register_cli_opts(cli_options)
    conf.set_default('use_stderr', use_stderr)
    _read(conf, args, config_files, program)
    if not conf.oslo_concurrency.lock_path:
        conf.set_default('lock_path', f'{conf.state_path}/locks', 'oslo_concurrency')
    log.setup(conf, PROJECT)
    outages.keep_short(logging.getLogger().handlers)
    return conf


def _read(
    conf: cfg.ConfigOpts,
    args: Sequence[str],
    config_files: Sequence[str] | None,
    program: str | None,
) -> None:
    conf(
        list(args),
        project=PROJECT,
        prog=program,
        default_config_files=None if config_files is None else list(config_files),
    )


def register(conf: cfg.ConfigOpts) -> None:
    """Register every option of the service and of the libraries that it configures."""
    log.register_options(conf)
    for module in MODULES:
        # By name: a group object would share its values with every other conf.
        name = None if module.GROUP is None else module.GROUP.name
        conf.register_opts(module.OPTIONS, group=name)
    loading.register_session_conf_options(conf, glance.GROUP.name)
    loading.register_auth_conf_options(conf, glance.GROUP.name)
    conf.register_opts(db_options.database_opts, group='database')
    _register_messaging(conf)


def _register_messaging(conf: cfg.ConfigOpts) -> None:
    """Register the options that oslo.messaging registers too late, or only on the global conf."""
    set_defaults()
    for group, options in messaging_opts.list_opts():
        if group is None:
            conf.register_opts(options)
    conf.register_opts(messaging_metrics.oslo_messaging_metrics, group='oslo_messaging_metrics')
    conf.register_opts(messaging_tracing.oslo_messaging_tracing, group='oslo_messaging_tracing')


def read_again(conf: cfg.ConfigOpts) -> None:
    """Read the configuration files again, for the options that may change at run time.

    :raises oslo_config.cfg.Error: a file or a value is invalid; nothing has changed
    """
    _refuse_bad_values(conf.config_file, conf.config_dir)
    conf.mutate_config_files()


def _refuse_bad_values(files: list[str], directories: list[str]) -> None:
    """Check the new values first: oslo.config would report a bad one only when it is used."""
    trial = cfg.ConfigOpts()
    changing = {
        _group_name(module): [option for option in module.OPTIONS if option.mutable]
        for module in MODULES
    }
    for name, options in changing.items():
        trial.register_opts(options, group=name)
    trial([], project=PROJECT, default_config_files=files, default_config_dirs=directories)
    for name, options in changing.items():
        for option in options:
            getattr(trial[name], option.dest)


def set_defaults() -> None:
    """Change defaults of the libraries; oslo.config's sample generator calls this, too."""
    oslo_messaging.set_transport_defaults(EXCHANGE)


def list_opts() -> list[tuple[str, list[cfg.Opt]]]:
    """List the options for oslo.config's sample generator and Sphinx extension."""
    options = [(_group_name(module), list(module.OPTIONS)) for module in MODULES]
    for index, (name, opts) in enumerate(options):
        if name == glance.GROUP.name:
            options[index] = (name, opts + glance.library_options())
    return options


def _group_name(module: ModuleType) -> str:
    group = module.GROUP
    return 'DEFAULT' if group is None else str(group.name)
