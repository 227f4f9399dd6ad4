# SPDX-License-Identifier: PostgreSQL
# Unit tests: ipc
