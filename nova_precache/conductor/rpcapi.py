# SPDX-License-Identifier: Apache-2.0
"""The conductor RPC API, from the sides that call: the API and the computes.

History:

* 1.0 - ``work_available``, ``register``, ``report_state``, ``report_progress``,
  ``begin_job``, ``get_token``
"""

from typing import Any

from nova_precache import context, exception, model, rpc

TOPIC = 'precache_conductor'
# Of its own: on one broker, servers of one topic share one queue, whatever they serve.
API_TOPIC = 'precache_conductor_api'


class ConductorAPI:
    """Wakes the conductors when a request was saved."""

    def __init__(self, transport: rpc.Transport, version_cap: str | None = None) -> None:
        self._client = transport.client(API_TOPIC, version_cap, retries=0)

    def work_available(self, ctxt: context.RequestContext) -> None:
        """Cast "work is here", once; conductors also find it by themselves.

        :raises nova_precache.exception.CellUnreachable: the broker took no message
        """
        self._client.cast(ctxt, 'work_available', '1.0')


class ConductorReporter:
    """A compute's way to its conductors: the ``compute.reporter.Reporter`` on the wire."""

    def __init__(
        self, transport: rpc.Transport, version_cap: str | None, timeout_seconds: float
    ) -> None:
        self._client = transport.client(TOPIC, version_cap, retries=1)
        self._timeout_seconds = timeout_seconds

    def register(self, state: model.Json) -> None:
        self._call('register', state=state)

    def report_state(self, state: model.Json) -> None:
        self._client.cast(context.admin_context(), 'report_state', '1.0', state=state)

    def report_progress(
        self, job_id: str, epoch: int, sequence: int, progress: model.Progress
    ) -> None:
        self._client.cast(
            context.admin_context(),
            'report_progress',
            '1.0',
            job_id=job_id,
            epoch=epoch,
            sequence=sequence,
            progress={
                'status': progress.status,
                'bytes_done': progress.bytes_done,
                'bytes_total': progress.bytes_total,
            },
        )

    def begin_job(self, job_id: str, epoch: int, starts: bool) -> bool:
        return bool(self._call('begin_job', job_id=job_id, epoch=epoch, starts=starts))

    def get_token(self) -> str | None:
        token = self._call('get_token')
        return None if token is None else str(token)

    def _call(self, method: str, **arguments: Any) -> Any:
        try:
            return self._client.call(
                context.admin_context(),
                method,
                '1.0',
                timeout_seconds=self._timeout_seconds,
                **arguments,
            )
        except TimeoutError as exc:
            raise exception.CellUnreachable(f'no conductor answered {method}: {exc}') from exc
