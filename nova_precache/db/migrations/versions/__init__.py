# SPDX-License-Identifier: Apache-2.0
"""One module per migration, in the order of their numbers."""
