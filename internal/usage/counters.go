// SPDX-License-Identifier: Apache-2.0

package usage

import "github.com/nettally/nettally/bpf"

// traffic puts what a slot counted into our words.
func traffic(target Target, rx, tx bpf.Counters) Traffic {
	t := Traffic{Receive: counts(rx), Transmit: counts(tx)}
	if target.Cgroup != 0 {
		t.Receive, t.Transmit = setLoopbackApart(t.Receive), setLoopbackApart(t.Transmit)
	}
	return t
}

// families and protocols are those of the cells in our words. Ours have an order of their
// own, in which records are kept.
var (
	families  = [...]Family{bpf.IPv4: FamilyIPv4, bpf.IPv6: FamilyIPv6}
	protocols = [bpf.Protocols]Protocol{
		bpf.TCP: ProtocolTCP, bpf.UDP: ProtocolUDP, bpf.ICMP: ProtocolICMP, bpf.Other: ProtocolOther,
	}
)

// counts puts a row of counters into our words.
func counts(row bpf.Counters) Counts {
	c := Counts{
		Interface: Volume(row.Interface),
		SYN:       row.TCPSYN,
		SYNACK:    row.TCPSYNACK,
		RST:       row.TCPRST,
		FIN:       row.TCPFIN,
	}
	for f, family := range families {
		for p, protocol := range protocols {
			c.Cells[family][protocol] = Volume(row.Cells[bpf.Cell(f, p)])
		}
	}
	c.Cells[FamilyOther][ProtocolOther] = Volume(row.Cells[bpf.NonIP])
	return c
}

// setLoopbackApart takes what passed loopback from the cell of what is no IP, where the
// programs for cgroups put it.
func setLoopbackApart(c Counts) Counts {
	other := &c.Cells[FamilyOther][ProtocolOther]
	c.Loopback, *other = *other, Volume{}
	return c
}

// add adds what the kernel had counted before us, and since, while we did not.
func (c *Counts) add(seeded, mended bpf.Volume) {
	c.Seeded, c.Mended = Volume(seeded), Volume(mended)
	c.Interface = c.Interface.plus(c.Seeded).plus(c.Mended)
}
