# SPDX-License-Identifier: PostgreSQL
# Fuzz targets: walstream
