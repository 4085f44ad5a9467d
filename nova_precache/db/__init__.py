# SPDX-License-Identifier: Apache-2.0
"""The durable record: a store for each noun, and packages of steps inside a transaction.

``engine`` is the connection; ``request`` and ``job`` hold the steps in the life of each. A
method of a store is one short transaction; ``job_batch`` executes many calls in one.
"""
