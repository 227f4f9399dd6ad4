# SPDX-License-Identifier: PostgreSQL
# Unit tests: pg
