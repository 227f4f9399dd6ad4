# SPDX-License-Identifier: PostgreSQL
EXTRA_DIST += pgctl/README.md
