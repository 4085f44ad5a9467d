# SPDX-License-Identifier: Apache-2.0
"""The connection to the database.

``session`` runs transactions, with ``timeouts`` and ``errors``; ``models`` are the tables and
``schema`` migrates them; ``texts`` fits reasons into columns; ``group_commit`` commits the work
of many threads together.
"""
