# SPDX-License-Identifier: PostgreSQL
# Fuzz targets: watchd
