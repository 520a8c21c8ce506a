# SPDX-License-Identifier: Apache-2.0
#
# Steps of TestNoRTC. The guest's clock is where the test has put it. One guest uses a
# quota, the next one has its state.

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

for module in veth sch_ingress cls_bpf; do
	insmod /modules/$module.ko
done
ip link set lo up

step 'date at boot' date -u +%Y-%m
step 'start' start
step 'clock at boot' trusted "$CLOCK"
step 'used at boot' used
if [ "$SET" ]; then
	step 'use' nettally quota set all 850B
fi
if [ "$DATE" ]; then
	step 'date' date -u -s "$DATE"
	step 'clock put right' trusted unproven
fi
sleep 3
step 'used then' used
step 'stop' stop
step 'state' base64 /var/lib/nettally/ledger.db
step 'log' true
poweroff -f
