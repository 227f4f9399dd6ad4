# SPDX-License-Identifier: PostgreSQL
# Unit tests: supervisor
