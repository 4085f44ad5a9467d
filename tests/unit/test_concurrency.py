# SPDX-License-Identifier: Apache-2.0
"""Work is done periodically and stopped, whatever the threads of this process are."""

import os
import threading
import weakref

import pytest

from nova_precache import backend, concurrency
from tests.service import wait_until
from tools.waiting import TIMEOUT_SECONDS


class Worker:
    """Counts how often it worked, and repeats until it may end."""

    def __init__(self) -> None:
        self.done = 0
        self.works = threading.Event()
        self.may_end = threading.Event()
        self._condition = threading.Condition()

    def work(self) -> None:
        with self._condition:
            self.done += 1
            self._condition.notify_all()

    def wait_done(self, count: int) -> None:
        with self._condition:
            assert self._condition.wait_for(lambda: self.done >= count, TIMEOUT_SECONDS)

    def work_long(self) -> None:
        self.works.set()
        assert self.may_end.wait(TIMEOUT_SECONDS)
        self.work()

    def stop(self) -> None:
        self.work_long()


def test_process_uses_threads_of_environment() -> None:
    assert backend.current() == os.environ.get(backend.VARIABLE, backend.Backend.THREADING)


def test_slow_task_does_not_delay_others() -> None:
    slow, quick = Worker(), Worker()
    periodic = concurrency.Periodic('test', [(0.01, slow.work_long), (0.01, quick.work)])

    periodic.start()
    assert slow.works.wait(TIMEOUT_SECONDS)
    quick.wait_done(quick.done + 3)

    assert slow.done == 0
    slow.may_end.set()
    periodic.stop()


def test_failing_task_is_repeated(caplog: pytest.LogCaptureFixture) -> None:
    worker = Worker()

    def fail() -> None:
        worker.work()
        raise RuntimeError('the disk is full')

    periodic = concurrency.Periodic('test', [(0.01, fail)])
    periodic.start()
    worker.wait_done(3)
    periodic.stop()

    assert 'the disk is full' in caplog.text


def test_stop_waits_for_running_work() -> None:
    worker = Worker()
    periodic = concurrency.Periodic('test', [(0.01, worker.work_long)])
    periodic.start()
    assert worker.works.wait(TIMEOUT_SECONDS)

    threading.Timer(0.05, worker.may_end.set).start()
    periodic.stop()
    done = worker.done

    assert done >= 1


def test_unstarted_service_can_be_stopped() -> None:
    concurrency.Periodic('test', [(0.01, Worker().work)]).stop()


def test_several_services_stop_at_once() -> None:
    workers = [Worker(), Worker()]
    stopping = threading.Thread(target=concurrency.stop_all, args=(workers,))
    stopping.start()

    assert all(worker.works.wait(TIMEOUT_SECONDS) for worker in workers)
    for worker in workers:
        worker.may_end.set()
    stopping.join(TIMEOUT_SECONDS)

    assert [worker.done for worker in workers] == [1, 1]


def test_late_service_is_left() -> None:
    worker = Worker()

    assert not concurrency.stop_within(0.05, worker)

    worker.may_end.set()
    worker.wait_done(1)


def test_timely_service_waited_for() -> None:
    worker = Worker()
    worker.may_end.set()

    assert concurrency.stop_within(TIMEOUT_SECONDS, worker)
    assert worker.done == 1


def test_pool_starts_thread_only_if_none_free() -> None:
    pool = concurrency.ThreadPool(8)

    threads = set()
    for _ in range(20):
        threads.add(pool.submit(threading.current_thread).result(TIMEOUT_SECONDS))
        wait_until(lambda: pool._free == 1, 'the thread waits for work')

    assert len(threads) == 1
    pool.shutdown()


def test_pool_runs_most_at_once() -> None:
    pool = concurrency.ThreadPool(2)
    busy, queued = [Worker(), Worker()], Worker()
    for each in busy:
        pool.submit(each.work_long)
    late = pool.submit(queued.work)
    for each in busy:
        assert each.works.wait(TIMEOUT_SECONDS)

    assert not late.done()
    busy[0].may_end.set()
    late.result(TIMEOUT_SECONDS)
    busy[1].may_end.set()
    pool.shutdown()
    assert [each.done for each in (*busy, queued)] == [1, 1, 1]


def test_pool_thread_without_work_ends() -> None:
    pool = concurrency.ThreadPool(2, idle_seconds=0.01)

    thread = pool.submit(threading.current_thread).result(TIMEOUT_SECONDS)
    thread.join(TIMEOUT_SECONDS)

    assert not thread.is_alive()
    assert pool.submit(threading.current_thread).result(TIMEOUT_SECONDS) is not thread
    pool.shutdown()


def test_waiting_pool_keeps_no_work() -> None:
    pool = concurrency.ThreadPool(1)
    argument = Worker()
    ended = threading.Event()
    kept = weakref.ref(argument, lambda gone: ended.set())

    pool.submit(argument.work).result(TIMEOUT_SECONDS)
    del argument

    assert ended.wait(TIMEOUT_SECONDS), kept
    pool.shutdown()


def test_pool_returns_error_of_work() -> None:
    pool = concurrency.ThreadPool(1)

    failed = pool.submit(int, 'no number')

    assert isinstance(failed.exception(TIMEOUT_SECONDS), ValueError)
    assert pool.submit(int, '1').result(TIMEOUT_SECONDS) == 1
    pool.shutdown()


def test_shut_down_pool_finishes_queue() -> None:
    pool = concurrency.ThreadPool(1)
    busy = Worker()
    pool.submit(busy.work_long)
    queued = pool.submit(int, '1')

    pool.shutdown(wait=False)
    with pytest.raises(RuntimeError, match='shut down'):
        pool.submit(int, '2')
    busy.may_end.set()

    assert queued.result(TIMEOUT_SECONDS) == 1


def test_shut_down_pool_drops_cancelled_queue() -> None:
    pool = concurrency.ThreadPool(1)
    busy = Worker()
    pool.submit(busy.work_long)
    queued = pool.submit(int, '1')

    pool.shutdown(wait=False, cancel_futures=True)
    busy.may_end.set()

    assert queued.cancelled()
