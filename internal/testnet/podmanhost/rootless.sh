# Prepares a place where a user runs podman, and waits. $1 is the uid.
uid=$1
home=/var/lib/user

# What podman and its helpers keep goes with the namespace, as in podman.sh.
for place in /run /var/lib /var/tmp /dev/shm /dev/net; do
	mount -t tmpfs tmpfs "$place"
done
chmod 1777 /var/tmp /dev/shm
mknod -m 666 /dev/net/tun c 10 200 # a machine may keep its own for root
mount --make-rshared /             # as systemd does; podman warns without
only_v2

# An account and its ids, in an /etc of our own.
mkdir /run/etc /run/etc.work
mount -t overlay -o lowerdir=/etc,upperdir=/run/etc,workdir=/run/etc.work overlay /etc
echo "nettally-user:x:$uid:$uid::$home:/bin/sh" >>/etc/passwd
echo "nettally-user:x:$uid:" >>/etc/group
for kind in subuid subgid; do
	echo "nettally-user:1000000:65536" >"/etc/$kind"
done
mkdir -p "$home/.config/containers"
cp "$dir/containers.conf" "$dir/storage.conf" "$dir/.config/containers/policy.json" "$home/.config/containers"
chown -R "$uid:$uid" "$home"

# What systemd gives to a user: directories, and a cgroup in which a service manager of
# the user's makes others.
session=/run/user/$uid
mkdir -p /run/user /run/systemd/system # the latter says that systemd runs
mkdir -m 700 "$session" "$session/podman" # the second for podman's socket
chown -R "$uid:$uid" "$session"
service=/sys/fs/cgroup$parent/user.slice/user-$uid.slice/user@$uid.service
mkdir -p "$service/init.scope"
chown "$uid:$uid" "$service" "$service/cgroup.procs" "$service/cgroup.threads" "$service/cgroup.subtree_control"
chown -R "$uid:$uid" "$service/init.scope"
(
	exec 3<&- </dev/null
	sh -c 'echo $$ >"$0"; exec "$@"' "$service/init.scope/cgroup.procs" \
		setpriv --reuid "$uid" --regid "$uid" --clear-groups --inh-caps=-all \
		env -i PATH="$PATH" HOME="$home" XDG_RUNTIME_DIR="$session" /lib/systemd/systemd --user --unit=dbus.socket
) &
manager=$!
until [ -S "$session/bus" ] && [ -S "$session/systemd/private" ]; do
	kill -0 $manager # ends the script if it has ended
	sleep 0.02
done

: >"$dir/ready"
cat >/dev/null
status=0
clean_up
