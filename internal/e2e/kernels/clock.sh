# SPDX-License-Identifier: Apache-2.0
#
# Steps of TestNoRTC. The guest's clock is where the test has put it. One guest uses a
# quota, the next one has its state and a container.

# trusted waits until the clock is judged so.
trusted() {
	for i in $(seq 1000); do
		wget -qO- http://127.0.0.1:9819/metrics | grep "^nettally_clock_trusted.*$1" && return
		usleep 20000
	done
	wget -qO- http://127.0.0.1:9819/metrics | grep clock
	return 1
}

# used waits until the quota's only key is there.
used() {
	for i in $(seq 1000); do
		nettally quota list -o json >/quotas
		grep -q '"key": "all"' /quotas && break
		usleep 20000
	done
	cat /quotas
}

# send has the container send, and waits until the history has all that it sent: $1 datagrams.
send() {
	rm -f /sent
	touch /send
	for i in $(seq 1000); do
		nettally history --by container --step month --from 1970-01-01 --to 2100-01-01 --container "$CONTAINER" -o json >/history
		[ -e /sent ] && grep -q "\"packets\": $1,\?\$" /history && return
		usleep 50000
	done
	cat /history
	return 1
}

# counted waits until the container is.
counted() {
	inside container "$CONTAINER" &
	for i in $(seq 1000); do
		nettally list -o json >/list
		grep -q '"accounted": true' /list && return
		usleep 20000
	done
	cat /list
	return 1
}

# rolled waits until the hours of the first days are in days.
rolled() {
	for i in $(seq 1000); do
		nettally history --step hour --from 2026-11-01 --to 2026-11-19 -o csv >/history && ! grep -q old /history && return
		usleep 200000
	done
	cat /history
	return 1
}

for module in veth sch_ingress cls_bpf; do
	insmod /modules/$module.ko
done
ip link set lo up

step 'date at boot' date -u +%Y-%m
as=$AS
step 'start' start
step 'clock at boot' trusted "$CLOCK"
step 'used at boot' used
if [ "$SET" ]; then
	step 'use' nettally quota set all 850B
fi
if [ "$DATE" ]; then
	step 'container' counted
	step 'send' send 100
	step 'date' date -u -s "$DATE"
	step 'clock put right' trusted unproven
	step 'synced' inside synced
	step 'clock trusted' trusted 'reason=""'
	step 'send again' send 200
	step 'stop first' stop # a minute sooner than it would look again by itself
	step 'start again' start
	step 'rolled up' rolled
	step 'months' nettally history --by container --step month --from 1970-01-01 --to 2100-01-01 -o csv
else
	sleep 3
fi
step 'used then' used
step 'stop' stop
step 'state' base64 /var/lib/nettally/ledger.db
step 'log' true
poweroff -f
