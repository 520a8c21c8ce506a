#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Called by dpkg with `remove`, `purge` and others, by rpm with 0 on removal and 1 on an upgrade.
set -e

case "$1" in
remove | 0) [ ! -d /run/systemd/system ] || systemctl daemon-reload || true ;;
esac
if [ "$1" = purge ]; then
	rm -rf /var/lib/nettally /etc/nettally
	if grep -q '^nettally:' /etc/group; then
		groupdel nettally
	fi
fi
