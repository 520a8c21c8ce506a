#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
set -e

# dpkg tells postinst of the version that was there before also where that one was removed,
# so what is new is marked here: it is enabled and started.
if [ "$1" = install ]; then
	mkdir -p /run
	: >/run/nettally.install
fi
