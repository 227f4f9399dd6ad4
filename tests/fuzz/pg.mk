# SPDX-License-Identifier: PostgreSQL
# Fuzz targets: pg
