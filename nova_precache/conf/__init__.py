# SPDX-License-Identifier: Apache-2.0
"""The options, one module a group; each is registered on a conf passed in."""

import functools
import logging
from collections.abc import Sequence
from importlib import metadata
from types import ModuleType
from typing import Any

import oslo_messaging
from keystoneauth1 import loading
from oslo_concurrency import lockutils  # noqa: F401 - registers its options on the global conf
from oslo_config import cfg
from oslo_db import options as db_options
from oslo_log import log
from oslo_messaging import opts as messaging_opts
from oslo_messaging._metrics import client as messaging_metrics
from oslo_messaging._tracing import client as messaging_tracing

from nova_precache import exception, outages
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
    config_dirs: Sequence[str] = (),
) -> cfg.ConfigOpts:
    """Create a separate conf with every option registered.

    :param args: command line arguments, such as ``--config-file PATH``
    :param config_files: files to read instead of the default ones, which are in files and
        directories
    :param program: its own file is one of the default ones; None: the running program
    :param config_dirs: directories to read after ``config_files``
    :raises oslo_config.cfg.Error: for an unknown argument or a bad value
    """
    conf = cfg.ConfigOpts()
    register(conf)
    read(conf, args, config_files, program, config_dirs)
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
    read(conf, args, config_files, program)
    if not conf.oslo_concurrency.lock_path:
        conf.set_default('lock_path', f'{conf.state_path}/locks', 'oslo_concurrency')
    try:
        log.setup(conf, PROJECT)
    except (OSError, log.LogConfigError) as exc:
        raise exception.ConfigError(f'The log cannot be set up: {exc}') from exc
    outages.keep_short(logging.getLogger().handlers)
    return conf


def read(
    conf: cfg.ConfigOpts,
    args: Sequence[str],
    config_files: Sequence[str] | None = None,
    program: str | None = None,
    config_dirs: Sequence[str] = (),
) -> None:
    """Read the command line and the configuration files; the parameters are those of :func:`new`.

    ``--version`` and ``--help`` end the process.
    """
    # oslo.config's help lists the files that it found, and None if it found none.
    conf.__dict__['_make_config_options'] = functools.partial(
        _described_options, has_defaults=config_files is None
    )
    try:
        conf(
            list(args),
            project=PROJECT,
            prog=program,
            version=metadata.version(PROJECT),
            default_config_files=None if config_files is None else list(config_files),
            default_config_dirs=None if config_files is None else list(config_dirs),
        )
    except (OSError, UnicodeDecodeError) as exc:
        raise exception.ConfigError(f'A configuration file cannot be read: {exc}') from exc


def _described_options(files: list[str], directories: list[str], has_defaults: bool) -> list[Any]:
    """Describe --config-file and --config-dir by what is read without them."""
    options = cfg.ConfigOpts._make_config_options(files, directories)
    described = {
        'config-file': (
            'Configuration file; if given several times, later files take precedence.',
            '.conf',
            files,
        ),
        'config-dir': (
            'Directory whose *.conf files take precedence over the files before it.',
            '.conf.d',
            directories,
        ),
    }
    for option in options:
        what, suffix, found = described[option.name]
        places = (
            f'the first {PROJECT}{suffix} and the first %(prog)s{suffix} that exist in '
            f'~/.{PROJECT}, ~, /etc/{PROJECT} and /etc; now {", ".join(found) or "none"}'
        )
        option.help = f'{what} Default: {places if has_defaults else "none"}.'
    return options


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
    # Alembic logs the kind of the database each time that its schema is looked at.
    log.set_defaults(default_log_levels=[*log.get_default_log_levels(), 'alembic=WARN'])


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
