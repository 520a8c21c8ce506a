#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Called by dpkg with `remove`, `purge` and others, by rpm with 0 on removal and 1 on an upgrade.
set -e

if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || true
fi
if [ "$1" = purge ]; then
	rm -rf /var/lib/nettally /etc/nettally
	if grep -q '^nettally:' /etc/group; then
		if command -v groupdel >/dev/null 2>&1; then groupdel nettally; else delgroup nettally; fi
	fi
fi
