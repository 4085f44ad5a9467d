# SPDX-License-Identifier: Apache-2.0
"""The durable record: a store for each noun, and packages of what runs inside a transaction.

``engine`` is the connection, ``request`` and ``job`` are the lives of these two. A method of a
store is one short transaction; ``job_batch`` does what many calls ask for in one.
"""
