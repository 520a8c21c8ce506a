#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Called by dpkg with `remove`, `upgrade` or `deconfigure`, by rpm with 0 on removal and with 1 on
# an upgrade, over which nettally runs on.
set -e

case "$1" in
remove | 0) ;;
*) exit 0 ;;
esac

if command -v systemctl >/dev/null 2>&1; then
	[ ! -d /run/systemd/system ] || systemctl stop nettally.service || true
	systemctl --no-reload disable nettally.service || true
fi
# What was counted goes to the state, which is kept, and our programs go off the interfaces.
/usr/bin/nettally detach || echo "nettally is not taken off the interfaces; the next start of this host does that" >&2
