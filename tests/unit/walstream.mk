# SPDX-License-Identifier: PostgreSQL
# Unit tests: walstream
