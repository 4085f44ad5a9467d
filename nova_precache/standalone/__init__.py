# SPDX-License-Identifier: Apache-2.0
"""What standalone and the tests start beside the service: other servers, for real."""
