# SPDX-License-Identifier: PostgreSQL
# Fuzz targets: broker
