# Comes before each host's script. It has the directory and the cgroup of the
# enclosure, and the script's own arguments.
set -eu
dir=$1 parent=$2
shift 2

# only_v2 mounts the v2 hierarchy alone, as newer hosts do.
only_v2() {
	umount -R /sys/fs/cgroup
	mount -t cgroup2 none /sys/fs/cgroup
}

# until_orphaned waits for a process, which it ends when standard input does, and
# leaves what it ended with in $status.
until_orphaned() {
	exec 3<&0 # a job in the background would read /dev/null
	{
		cat <&3 >/dev/null
		kill "$1"
	} &
	exec 3<&-
	status=0
	wait "$1" || status=$?
}

# kill_rest kills what is in our mount namespace, and containers, which are in
# our cgroups.
kill_rest() {
	here=$(readlink /proc/self/ns/mnt)
	here=${here#mnt:[}
	# At once: a busy machine takes seconds for a process per process.
	for pid in $(find /proc/[0-9]*/ns/mnt -lname "mnt:?${here%]}?" 2>/dev/null | cut -d / -f 3); do
		[ "$pid" = $$ ] || kill -9 "$pid" 2>/dev/null || true
	done
	for top in $(tops); do
		# shellcheck disable=SC2038 # process ids, not file names
		find "$top" -name cgroup.procs -exec cat {} + 2>/dev/null | xargs -r kill -9 2>/dev/null || true
	done
}

# tops prints our cgroups: in each hierarchy the one of the enclosure, and those
# that a runtime has put into its own /default, with the same beginning.
tops() {
	for root in /sys/fs/cgroup /sys/fs/cgroup/*; do
		for top in "$root$parent" "$root/default$parent"-*; do
			[ ! -d "$top" ] || echo "$top"
		done
	done
}

remove_cgroups() {
	left=0
	for top in $(tops); do
		find "$top" -depth -type d -exec rmdir {} + 2>/dev/null || left=1
	done
	if [ -e "$dir/default" ]; then # a mark that something was there
		rmdir /sys/fs/cgroup/default /sys/fs/cgroup/*/default 2>/dev/null || true # others may be in it
	fi
	return $left
}

# clean_up ends the script with $status, when nothing of the enclosure is left.
clean_up() {
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
	exit "$status"
}
