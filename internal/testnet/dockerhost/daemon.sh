# Runs dockerd until standard input ends, then takes everything away again.
# Started in a new network and mount namespace, with a directory for socket and
# log, the cgroup parent, and whether to show cgroup v2 alone.
set -eu
dir=$1 parent=$2 v2only=$3

# The machine's containerd and its state are out of sight, so dockerd starts one
# of its own. All state is on this tmpfs and goes with the namespace.
mount -t tmpfs tmpfs /run
if [ "$v2only" = true ]; then
	umount -R /sys/fs/cgroup
	mount -t cgroup2 none /sys/fs/cgroup
fi
mkdir /run/nettally-docker
cd /run/nettally-docker
echo '{}' >config.json

dockerd --config-file config.json --log-level warn --host "unix://$dir/sock" \
	--data-root "$PWD/data" --exec-root "$PWD/exec" --pidfile "$PWD/pid" \
	--bip 10.231.0.1/24 --storage-driver overlay2 --shutdown-timeout 5 \
	--cgroup-parent "$parent" --exec-opt native.cgroupdriver=cgroupfs </dev/null &
dockerd=$!

exec 3<&0 # the shell would give /dev/null to a job in the background
{
	cat <&3 >/dev/null
	kill "$dockerd"
} &
exec 3<&-
status=0
wait "$dockerd" || status=$?

# That job if dockerd has crashed, and what dockerd left then: shims are in our
# mount namespace, containers in our cgroups.
kill_rest() {
	here=$(readlink /proc/self/ns/mnt)
	for process in /proc/[0-9]*; do
		pid=${process#/proc/}
		[ "$pid" != $$ ] || continue
		[ "$(readlink "$process/ns/mnt" 2>/dev/null)" != "$here" ] || kill -9 "$pid" 2>/dev/null || true
	done
	for root in /sys/fs/cgroup /sys/fs/cgroup/*; do
		[ -d "$root$parent" ] || continue
		# shellcheck disable=SC2038 # process ids, not file names
		find "$root$parent" -name cgroup.procs -exec cat {} + 2>/dev/null | xargs -r kill -9 2>/dev/null || true
	done
}
remove_cgroups() {
	left=0
	for root in /sys/fs/cgroup /sys/fs/cgroup/*; do
		[ -d "$root$parent" ] || continue
		find "$root$parent" -depth -type d -exec rmdir {} + 2>/dev/null || left=1
	done
	return $left
}
kill_rest
tries=0
until remove_cgroups; do
	tries=$((tries + 1))
	if [ $tries -gt 500 ]; then
		echo "cgroups of $parent cannot be removed" >&2
		exit 1
	fi
	kill_rest
	sleep 0.02
done
rm -rf "$dir/sock"
exit $status
