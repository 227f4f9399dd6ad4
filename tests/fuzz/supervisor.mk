# SPDX-License-Identifier: PostgreSQL
# Fuzz targets: supervisor
