# SPDX-License-Identifier: PostgreSQL
# Fuzz targets: ipc
