# SPDX-License-Identifier: Apache-2.0
"""The durable record: a store for each noun, and packages of steps inside a transaction.

``requests``, ``jobs``, ``pins``, ``agents`` and ``caches`` are stores: each method is one short
transaction. ``job_batch`` executes in one transaction what many threads ask of ``jobs``.
``engine`` is the connection; ``request`` and ``job`` have a module for each step in the life of
each. ``request_actions`` steers requests, ``outbox`` holds notifications until they are sent,
and ``host_recovery`` and ``host_removal`` are about hosts that return or are gone.
"""
