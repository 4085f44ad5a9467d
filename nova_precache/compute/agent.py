# SPDX-License-Identifier: Apache-2.0
"""The compute service: registers, serves and reports until it is stopped."""

import logging
import pathlib
import threading
from collections.abc import Callable

import tenacity

from nova_precache import concurrency, exception, files, model, outages, rpc
from nova_precache.compute import (
    cache_reporter,
    name as compute_name,
    reporter,
    reports as host_reports,
    transfers,
)
from nova_precache.virt import driver as virt_driver

LOG = logging.getLogger(__name__)

# The shortest interval between two reports.
REPORT_SECONDS = 1.0
REGISTER_STOP_SECONDS = 2.0
STOP_SECONDS = 10.0
# For the goodbye, from the start of the stop; a broker that is away holds it up for longer.
GOODBYE_SECONDS = 4.0
_REGISTER_WAIT_SECONDS = 2.0
_UNMAPPED_WAIT_SECONDS = 30.0
LEFTOVERS_SECONDS = 2400.0
_TAKEN = 'the name is taken'  # the error text itself changes with the time of each report
_NOVAS_PERIOD_SECONDS = 60.0  # Nova's default for periodic tasks


def agent_id(state_path: pathlib.Path) -> str:
    """Read this host's agent id from its state directory, or create one there.

    :raises nova_precache.exception.ConfigError: it can be neither read nor created
    """
    path = state_path / 'agent_id'
    try:
        state_path.mkdir(parents=True, exist_ok=True)
        return files.kept_uuid(path)
    except OSError as exc:
        raise exception.ConfigError(
            f'state_path {state_path} cannot be used: {exc.filename}: {exc.strerror}'
        ) from exc


def _error_of(state: tenacity.RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome is not None else None


def _seconds_to_next(state: tenacity.RetryCallState) -> float:
    """Return a longer wait if an operator must map the host, else the usual wait."""
    is_unmapped = isinstance(_error_of(state), exception.HostNotMapped)
    return _UNMAPPED_WAIT_SECONDS if is_unmapped else _REGISTER_WAIT_SECONDS


def cache_seconds(manager_interval: int) -> float | None:
    """Convert ``[image_cache] manager_interval`` to seconds as Nova does; None means never."""
    if manager_interval < 0:
        return None
    return manager_interval or _NOVAS_PERIOD_SECONDS


class ComputeAgent:
    """Registers a host with its cell's conductors, then serves and reports.

    An agent that loses its registration stops serving, and registers again once it may.

    :param new_server: returns a new RPC server for each registration
    :param cache_seconds: interval of the removal of unused images; None: only partial downloads
        are removed, every ``LEFTOVERS_SECONDS``
    """

    def __init__(
        self,
        identity: model.Json,
        name: compute_name.Name,
        driver: virt_driver.ComputeDriver,
        conductor: reporter.Reporter,
        new_server: Callable[[], rpc.Server],
        running: transfers.Transfers,
        images: cache_reporter.CacheReporter,
        reports: host_reports.Reports,
        report_seconds: float,
        cache_seconds: float | None,
    ) -> None:
        self._identity = identity
        self._name = name
        self._driver = driver
        self._conductor = conductor
        self._new_server = new_server
        self._server: rpc.Server | None = None
        self._transfers = running
        self._inventory = images
        self._reports = reports
        self._stopping = threading.Event()
        self._registered = threading.Event()
        self._leaving = threading.Lock()
        self._is_known = self._has_left = self._is_full_report_due = False
        self._logged_refusal: str | None = None
        self._registering = threading.Thread(
            target=self._register_and_serve, name=f'register-{self.host}', daemon=True
        )
        work: list[tuple[float, concurrency.Work]] = [
            (report_seconds, self.report_state),
            (min(REPORT_SECONDS, report_seconds), self.send_reports),
            (REPORT_SECONDS, self.report_images),
        ]
        if cache_seconds is not None:
            work.append((cache_seconds, self.manage_image_cache))
        else:
            work.append((LEFTOVERS_SECONDS, self.remove_leftovers))
        self._periodic = concurrency.Periodic(f'periodic-{self.host}', work)

    @property
    def host(self) -> str:
        return str(self._identity['host'])

    def start(self) -> None:
        """Prepare the host, then register in the background until that succeeds.

        :raises nova_precache.exception.ConfigError: the host cannot be used as configured
        """
        self._driver.init_host()
        self._registering.start()

    @property
    def is_registered(self) -> bool:
        """Whether this agent is registered for its host, and serves."""
        return self._registered.is_set()

    def wait_registered(self, timeout_seconds: float) -> bool:
        """Wait until this agent is registered for its host; False after a timeout."""
        return self._registered.wait(timeout_seconds)

    def stop(self) -> None:
        """Say goodbye, stop reporting, abort the transfers, and stop serving calls.

        The goodbye comes first, so that no conductor calls again what is aborted.
        """
        self._stopping.set()
        self._name.close()
        leaving = concurrency.in_background(self._say_goodbye, f'goodbye-{self.host}')
        leaving.join(GOODBYE_SECONDS)
        self._transfers.stop()
        self._reports.close()
        if self._registering.ident is not None:
            self._registering.join(REGISTER_STOP_SECONDS)  # it may wait for a conductor's answer
        self._stop_soon(self._periodic, 'its periodic tasks are running')
        if self._server is not None:
            self._stop_soon(self._server, 'a call is running')

    def _say_goodbye(self) -> None:
        """Report that this host stops; without that, it is down only once it has been silent.

        Each registration has one goodbye, although two threads may want to say it.
        """
        with self._leaving:
            if not self._is_known:
                return
            self._is_known = False
        try:
            self._conductor.goodbye(
                self.host, str(self._identity['agent_id']), str(self._identity['boot_id'])
            )
        except exception.VersionUnsupported as exc:
            LOG.debug('Host %s stops without a goodbye: %s', self.host, exc)
        except exception.PrecacheError as exc:
            level = logging.DEBUG if outages.is_logged(exc) else logging.WARNING
            LOG.log(level, 'Host %s stops without a goodbye: %s', self.host, exc)
        except Exception:
            LOG.exception('Host %s stops without a goodbye', self.host)

    def _stop_soon(self, part: concurrency.Stoppable, otherwise: str) -> None:
        """Stop a part, but do not wait long for a running call or a silent broker."""
        if not concurrency.stop_within(STOP_SECONDS, part):
            LOG.warning('Host %s stops while %s', self.host, otherwise)

    def state(self) -> model.Json:
        """Return the state that every report of this agent contains."""
        report = self._driver.cache_report()
        return {
            **self._identity,
            'driver': type(self._driver).__name__,
            'capabilities': dict(self._driver.capabilities),
            'store_id': report.store_id,
            'cache_bytes': report.cache_bytes,
            'free_bytes': report.free_bytes,
        }

    def _register_and_serve(self) -> None:
        self._register(tenacity.retry_if_exception_type(Exception))
        self._serve()
        if not self._stopping.is_set():
            self._periodic.start()
        while self._name.wait_doubtful():
            try:
                self._register(tenacity.retry_if_not_exception_type(exception.AgentConflict))
            except exception.AgentConflict as exc:
                self._leave(exc)
                self._register(tenacity.retry_if_exception_type(Exception))
                self._serve()

    def _register(self, retry: tenacity.retry_base) -> None:
        """Register, retrying until that succeeds or the compute stops."""
        attempts = tenacity.Retrying(
            retry=retry,
            wait=_seconds_to_next,
            sleep=tenacity.sleep_using_event(self._stopping),
            stop=tenacity.stop_when_event_set(self._stopping),
            before_sleep=self._log_refusal,
            retry_error_callback=lambda state: None,  # stopped before it was registered
        )
        for attempt in attempts:
            with attempt:
                self._reports.registered(self._conductor.register(self.state()))
                self._is_known = True
        if self._stopping.is_set():
            self._say_goodbye()  # that of stop() may have been before this registration
        self._logged_refusal = None
        self._is_full_report_due = True  # the conductors may have recorded another machine's cache

    def _serve(self) -> None:
        if self._stopping.is_set():
            return
        self._has_left = False
        self._transfers.resume()
        self._server = self._new_server()
        self._server.start()
        self._registered.set()
        LOG.info('Host %s is registered and serves', self.host)

    def _leave(self, why: exception.AgentConflict) -> None:
        """Stop serving the host: another agent is registered for it.

        A transfer that is aborted here does not count as an attempt: a conductor calls again,
        there or here.
        """
        LOG.error('Another agent serves host %s, waiting until it is silent: %s', self.host, why)
        self._logged_refusal = _TAKEN
        self._has_left = True
        self._is_known = False
        self._registered.clear()
        self._transfers.stop(exception.NameLost(str(why)))
        if self._server is not None:
            self._stop_soon(self._server, 'a call is running')
            self._server = None

    def _log_refusal(self, state: tenacity.RetryCallState) -> None:
        error = _error_of(state)
        level, about = logging.WARNING, str(error)
        if isinstance(error, exception.AgentConflict):
            level, about = logging.ERROR, _TAKEN
        if outages.is_logged(error) or about == self._logged_refusal:
            level = logging.DEBUG
        self._logged_refusal = about
        LOG.log(level, 'Host %s is not registered yet: %s', self.host, error)

    def report_state(self) -> None:
        """Report to the conductors that this host is alive, and the state of its cache."""
        try:
            self._reports.add_state(self.state())
        except exception.PrecacheError as exc:
            LOG.warning('Failed to read the state of host %s: %s', self.host, exc)

    def send_reports(self) -> None:
        """Send the state, the progress of each running transfer, and news of the cache."""
        if not self._has_left:
            self._reports.send()

    def report_images(self) -> None:
        """Report the cache inventory if it is due; after a registration, all of it."""
        if self._has_left:
            return
        if self._is_full_report_due:
            self._is_full_report_due = False
            self._inventory.require_full_report()
        try:
            self._inventory.report(self._transfers.ended)
        except exception.PrecacheError as exc:
            LOG.debug('Failed to report the cached images of host %s: %s', self.host, exc)

    def manage_image_cache(self) -> None:
        """Remove unused images through the driver."""
        try:
            self._driver.manage_image_cache()
        except exception.PrecacheError as exc:
            LOG.warning('Failed to remove unused images of host %s: %s', self.host, exc)

    def remove_leftovers(self) -> None:
        """Remove old partial downloads through the driver, where no image cache round does."""
        try:
            self._driver.remove_leftovers()
        except exception.PrecacheError as exc:
            LOG.warning('Failed to remove old partial downloads of host %s: %s', self.host, exc)
