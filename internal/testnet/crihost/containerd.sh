# Runs containerd, by the configuration in $dir. $1 says whether to show cgroup v2
# alone.

# What containerd, its shims, runc and the CNI plugins keep: state, network
# namespaces, sockets of shims, addresses, results. It goes with the namespace.
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib
[ "$1" = false ] || only_v2

containerd --config "$dir/config.toml" </dev/null &
echo $! >/run/containerd.pid
until_orphaned $!
clean_up
