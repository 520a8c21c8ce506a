# Runs containerd until standard input ends, then takes everything away again.
# Started in a new network and mount namespace, with the directory that has
# containerd's configuration and gets its socket, and the cgroup of all pods.
set -eu
dir=$1 parent=$2

# What containerd, its shims, runc and the CNI plugins keep: state, network
# namespaces, sockets of shims, addresses, results. It goes with the namespace.
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib

containerd --config "$dir/config.toml" </dev/null &
containerd=$!
echo "$containerd" >/run/containerd.pid

exec 3<&0 # a job in the background would read /dev/null
{
	cat <&3 >/dev/null
	kill "$containerd"
} &
exec 3<&-
status=0
wait "$containerd" || status=$?

# That job if containerd has crashed; shims, which outlive containerd in our mount
# namespace; and what they run, which is in our cgroups.
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
# A test that lives may want the log, and removes the directory itself.
kill -0 "$PPID" 2>/dev/null || rm -rf "$dir"
exit $status
