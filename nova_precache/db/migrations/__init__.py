# SPDX-License-Identifier: Apache-2.0
"""The migrations, run by ``db.engine.schema``."""
