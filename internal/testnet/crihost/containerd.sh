# Runs containerd, by the configuration in $dir.

# What containerd, its shims, runc and the CNI plugins keep: state, network
# namespaces, sockets of shims, addresses, results. It goes with the namespace.
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib

containerd --config "$dir/config.toml" </dev/null &
echo $! >/run/containerd.pid
until_orphaned $!
clean_up
