#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Called by dpkg with `configure [VERSION]` or `abort-...`, by rpm with 1 where nettally is new
# and with 2 on an upgrade. Nothing here needs systemd to run, as it does not in a container.
set -e

new=no
case "$1:$2" in
configure: | 1:*) new=yes ;;
configure:*) [ ! -e /run/nettally.install ] || new=yes ;;
esac
rm -f /run/nettally.install

# Its members may use the socket in /run/nettally.
if ! grep -q '^nettally:' /etc/group && ! getent group nettally >/dev/null 2>&1; then
	groupadd --system nettally
fi

command -v systemctl >/dev/null 2>&1 || exit 0
if [ $new = yes ]; then
	systemctl --no-reload enable nettally.service || true
fi
[ -d /run/systemd/system ] || exit 0
systemctl daemon-reload || true
case "$1" in
# On an upgrade the kernel goes on counting between the two, and nothing is lost. Whoever has
# stopped nettally finds it stopped.
configure | 1 | 2) [ $new = yes ] && does=start || does=try-restart ;;
*) does=start ;; # dpkg takes a removal back
esac
if command -v deb-systemd-invoke >/dev/null 2>&1; then # asks policy-rc.d
	run=deb-systemd-invoke
else
	run=systemctl
fi
$run $does nettally.service || echo "nettally does not start: \`nettally check\` says what this host lacks" >&2
