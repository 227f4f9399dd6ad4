#!/bin/sh
# SPDX-License-Identifier: PostgreSQL
# Make configure and the Makefile templates from configure.ac and the local.mk files.
set -e
cd "$(dirname "$0")"
mkdir -p build-aux m4
autoreconf --force --install --warnings=all
