# SPDX-License-Identifier: PostgreSQL
# Fuzz targets: base
