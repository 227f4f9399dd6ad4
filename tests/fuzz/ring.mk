# SPDX-License-Identifier: PostgreSQL
# Fuzz targets: ring
