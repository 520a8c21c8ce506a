# Prepares a place for podman, which has no daemon, and waits. $1 says whether to
# show cgroup v2 alone.

# What podman, conmon, runc and netavark keep: images, state, locks, sockets,
# network namespaces. It goes with the namespace.
for place in /run /var/lib /var/tmp /dev/shm; do
	mount -t tmpfs tmpfs "$place"
done
chmod 1777 /var/tmp /dev/shm
[ "$1" = false ] || only_v2

: >"$dir/ready"
cat >/dev/null
status=0
clean_up
