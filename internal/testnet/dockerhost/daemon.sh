# Runs dockerd. $1 says whether to show cgroup v2 alone.

# The machine's containerd and its state are out of sight, so dockerd starts one
# of its own. All state is on this tmpfs and goes with the namespace.
mount -t tmpfs tmpfs /run
[ "$1" = false ] || only_v2
mkdir /run/nettally-docker
cd /run/nettally-docker
echo '{}' >config.json

dockerd --config-file config.json --log-level warn --host "unix://$dir/sock" \
	--data-root "$PWD/data" --exec-root "$PWD/exec" --pidfile "$PWD/pid" \
	--bip 10.231.0.1/24 --storage-driver overlay2 --shutdown-timeout 5 \
	--cgroup-parent "$parent" --exec-opt native.cgroupdriver=cgroupfs </dev/null &
until_orphaned $!
clean_up
