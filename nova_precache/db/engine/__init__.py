# SPDX-License-Identifier: Apache-2.0
"""The connection to the database: sessions, tables, migrations, group commit, errors, limits."""
