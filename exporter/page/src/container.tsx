// SPDX-License-Identifier: Apache-2.0

import { h, Fragment } from "preact";
import { useState } from "preact/hooks";
import { type Counts, type Details, type Quota, type Volume } from "./api";
import { count, digits, type Count } from "./exact";
import { amount, duration, moment, perSecond, rate, safe, type Unit } from "./format";
import { link } from "./address";
import { HistoryTable, steps } from "./history";
import { QuotaTable } from "./quotas";
import { Choice, Figure, Problem, Scroll, Section, Source, Text, useFetch, useTick } from "./shared";
import { StackPlot } from "./stackplot";
import { countedBy, inPart, reason } from "./words";

export function Container({ id, unit }: { id: string; unit: Unit }) {
  const model = useTick();
  const api = `api/v1/containers/${encodeURIComponent(id)}`;
  const fetched = useFetch<Details>(api, 5_000);
  const quotas = useFetch<{ quotas: Quota[] }>(model.quotas.length > 0 ? "api/v1/quotas" : "", 15_000);
  const c = fetched.body;
  const row = model.rows.get(c?.id ?? id);
  const name = row?.is.name ?? c?.name ?? "";
  const foremost = model.foremost[id];
  const mine = quotas.body?.quotas.filter((q) => q.key !== "" && (q.key === id || q.key === name || (foremost && q.quota === foremost.quota && q.key === foremost.key))) ?? [];
  return (
    <div class="container">
      <p class="back"><a href={link("now")}>All containers</a></p>
      <h1><Text>{name || id.slice(0, 12)}</Text></h1>
      {fetched.status === 404 && !row ? <p class="problem" role="alert">There is no container <Text>{id}</Text> any more. Its history may still be there.</p> : <Problem of={fetched} />}
      {c && <Why c={c} />}
      <dl class="tiles">
        <div class="rx"><dt>Receive</dt><dd><Figure of={row?.rates ? rate(row.rates.receiveBytes, unit) : null} /></dd></div>
        <div class="tx"><dt>Transmit</dt><dd><Figure of={row?.rates ? rate(row.rates.transmitBytes, unit) : null} /></dd></div>
        <div><dt>Received</dt><dd><Figure of={row?.counted ? amount(row.receive.bytes, unit) : null} /></dd></div>
        <div><dt>Transmitted</dt><dd><Figure of={row?.counted ? amount(row.transmit.bytes, unit) : null} /></dd></div>
        <div><dt>Packets</dt><dd><Figure of={row?.rates ? perSecond(row.rates.receivePackets + row.rates.transmitPackets) : null} /></dd></div>
        <div><dt>SYN</dt><dd><Figure of={row?.rates ? perSecond(row.rates.receiveSYN + row.rates.transmitSYN) : null} /></dd></div>
        {row?.connections && <div><dt>TCP connections</dt><dd><Figure of={perSecond(row.connections.opened)} /></dd></div>}
        {row?.connections && <div><dt>Failed</dt><dd><Figure of={perSecond(row.connections.failed)} /></dd></div>}
      </dl>
      {row && <StackPlot key={id} unit={unit} of={row} />}
      {row && (
        <Section title="Exact totals">
          <Scroll label="Exact totals"><table class="exact" id="exact">
            <thead><tr><th scope="col" /><th scope="col">Received</th><th scope="col">Transmitted</th></tr></thead>
            <tbody>
              <Exact title="Bytes" of={row} key="bytes" field="bytes" />
              <Exact title="Packets" of={row} field="packets" />
              <Exact title="SYN" of={row} field="tcp_syn" />
              {(row.receive.seeded_bytes !== 0 || row.transmit.seeded_bytes !== 0) && <Exact title="Seeded bytes, part of bytes" of={row} field="seeded_bytes" />}
            </tbody>
          </table></Scroll>
          <p class="note">Counted {countedBy[row.is.counted_by] ?? safe(row.is.counted_by)}. A click on a number selects all its digits.
            {(row.receive.seeded_bytes !== 0 || row.transmit.seeded_bytes !== 0) && " Seeded is what the kernel had counted before nettally came: part of the totals, and of no rate, hour or quota."}</p>
        </Section>
      )}
      {mine.length > 0 && <Section title="Quotas"><QuotaTable quotas={mine} /></Section>}
      <History id={c?.id ?? id} unit={unit} />
      {c && <Interfaces c={c} unit={unit} />}
      {c && <About c={c} />}
      <Source of={[api, ...(mine.length > 0 ? ["api/v1/quotas"] : []), "api/v1/stream", "api/v1/recent"]} />
    </div>
  );
}

type Totals = { receive: Record<string, Count>; transmit: Record<string, Count> };

function Exact({ title, of, field }: { title: string; of: unknown; field: string; key?: string }) {
  const totals = of as Totals;
  return <tr><th scope="row">{title}</th><Digits of={totals.receive[field]} /><Digits of={totals.transmit[field]} /></tr>;
}

/** A counter to the digit, which one click selects. The gaps between groups are not copied. */
function Digits({ of }: { of: unknown }) {
  if (of === null || of === undefined) return <td class="digits quiet">–</td>;
  const groups = digits(count(of)).match(/\d{1,3}(?=(?:\d{3})*$)/g) ?? [];
  return <td class="digits">{groups.map((g, i) => <span key={i}>{g}</span>)}</td>;
}

function Why({ c }: { c: Details }) {
  const shadowed = c.interfaces.filter((i) => i.reason === "shadowed").map((i) => safe(i.name));
  if (c.reason === "" && shadowed.length === 0) return null;
  const of = c.reason || "shadowed";
  const [why, todo] = reason(of);
  const some = c.accounted || c.ip !== null || inPart.has(of);
  return <p class="notice" role="note"><strong>{some ? "In part: " : "Not counted: "}</strong>{why} {todo}{shadowed.length > 0 && ` Interface: ${shadowed.join(", ")}.`}</p>;
}

function History({ id, unit }: { id: string; unit: Unit }) {
  const [step, set] = useState("hour");
  return (
    <Section title="Used" aside={<Choice label="By" value={step} of={steps} set={set} />}>
      <HistoryTable parameters={{ container: id, by: "container", step, user: "*" }} unit={unit} caption="Usage of this container" />
    </Section>
  );
}

function Interfaces({ c, unit }: { c: Details; unit: Unit }) {
  const ways: [string, { receive: Counts; transmit: Counts }][] = c.interfaces.map((i) => [i.name || i.host_interface, i]);
  if (c.ip) ways.push(["by IP", c.ip]);
  if (ways.length === 0) return null;
  return (
    <>
      <Section title="Interfaces">
        <Scroll label="Interfaces"><table class="plain">
          <thead><tr><th scope="col">Interface</th><th scope="col">In the host</th><th scope="col">Hook</th><th scope="col">Direction</th><th scope="col" class="number">Bytes</th><th scope="col" class="number">Packets</th><th scope="col" class="number">Kernel's bytes</th><th scope="col" class="number">Seeded</th><th scope="col" class="number">Mended</th><th scope="col" class="number">Dropped</th><th scope="col" class="number">Errors</th></tr></thead>
          <tbody>
            {c.interfaces.map((i) => (["receive", "transmit"] as const).map((d) => (
              <tr key={i.name + i.host_interface + d}>
                {d === "receive" && <th scope="rowgroup" rowSpan={2}><Text>{i.name}</Text>{i.reason && <span class="state warn"> {i.reason}</span>}</th>}
                {d === "receive" && <td rowSpan={2}><Text>{i.host_interface || (i.at === "container" ? "(none)" : "")}</Text></td>}
                {d === "receive" && <td rowSpan={2}>{i.hook}{i.at === "container" ? ", in the container" : ""}</td>}
                <td>{d === "receive" ? "received" : "transmitted"}</td>
                <Digits of={i[d].bytes} /><Digits of={i[d].packets} /><Digits of={i[d].interface_bytes} /><Digits of={i[d].seeded_bytes} /><Digits of={i[d].mended_bytes} /><Digits of={i[d].dropped_packets} /><Digits of={i[d].error_packets} />
              </tr>
            )))}
            {c.ip && (["receive", "transmit"] as const).map((d) => (
              <tr key={d}>{d === "receive" && <th scope="rowgroup" rowSpan={2}>by IP</th>}{d === "receive" && <td rowSpan={2} colSpan={2}>its cgroup, without loopback</td>}
                <td>{d === "receive" ? "received" : "transmitted"}</td><Digits of={c.ip![d].bytes} /><Digits of={c.ip![d].packets} /><td colSpan={5} /></tr>
            ))}
          </tbody>
        </table></Scroll>
      </Section>
      <Section title="Protocols">
        <Scroll label="Protocols" kind="columns-of">
          {ways.map(([name, way], i) => <Split key={i} name={name} way={way} unit={unit} />)}
        </Scroll>
      </Section>
      {c.tcp && <TCP of={c.tcp} />}
    </>
  );
}

const protocolNames: Record<string, string> = { tcp: "TCP", udp: "UDP", icmp: "ICMP", ipv4: "IPv4", ipv6: "IPv6", other: "other" };

function Split({ name, way, unit }: { name: string; way: { receive: Counts; transmit: Counts }; unit: Unit }) {
  const part = (kind: "protocols" | "families") => Object.keys(way.receive[kind]).map((p) => {
    const [r, t] = [way.receive[kind][p], way.transmit[kind][p]] as [Volume, Volume];
    return <tr key={kind + p}><th scope="row">{protocolNames[p] ?? p}</th><td class="number"><Figure of={amount(count(r.bytes), unit)} /></td><td class="number"><Figure of={amount(count(t.bytes), unit)} /></td></tr>;
  });
  const flag = (title: string, f: "tcp_syn" | "tcp_synack" | "tcp_rst" | "tcp_fin") => <tr key={f}><th scope="row">{title}</th><Digits of={way.receive[f]} /><Digits of={way.transmit[f]} /></tr>;
  return (
    <table class="plain split">
      <caption><Text>{name}</Text></caption>
      <thead><tr><th scope="col" /><th scope="col" class="number">Received</th><th scope="col" class="number">Transmitted</th></tr></thead>
      <tbody>{part("protocols")}</tbody>
      <tbody>{part("families")}</tbody>
      <tbody>{flag("SYN", "tcp_syn")}{flag("SYN-ACK", "tcp_synack")}{flag("RST", "tcp_rst")}{flag("FIN", "tcp_fin")}</tbody>
    </table>
  );
}

const tcpWords: Record<string, string> = {
  connect_attempts: "Connections attempted", connects: "of these established", connect_failures: "of these refused or failed", accepts: "Connections accepted",
  established: "Established now", closes: "Ended", resets: "of these reset", retransmitted_segments: "Segments sent again", listen_drops: "Dropped by full queues",
};

function TCP({ of }: { of: Record<string, unknown> }) {
  return (
    <Section title="TCP connections">
      <table class="plain split"><tbody>
        {Object.entries(tcpWords).map(([key, title]) => <tr key={key}><th scope="row">{title}</th><Digits of={of[key]} /></tr>)}
      </tbody></table>
    </Section>
  );
}

function About({ c }: { c: Details }) {
  const facts: [string, string][] = [
    ["Id", c.id], ["Image", c.image], ["Runtime", c.runtime], ["Namespace", c.namespace], ["Pod", c.pod], ["User", c.user], ["Kernel", c.kernel],
    ["Network", c.network_mode], ["Started", c.started_at ? `${moment(c.started_at)} (${duration(Date.now() - Date.parse(c.started_at))} ago)` : ""],
    ["Ended", moment(c.stopped_at)], ["Cgroup", c.cgroup],
  ];
  const labels = Object.entries(c.labels ?? {}).sort();
  return (
    <Section title="About it">
      <dl class="facts">
        {facts.filter(([, v]) => v !== "").map(([k, v]) => <div key={k}><dt>{k}</dt><dd><Text>{v}</Text></dd></div>)}
        {labels.map(([k, v]) => <div key={`label ${k}`}><dt><Text>{k}</Text></dt><dd><Text>{v}</Text></dd></div>)}
      </dl>
    </Section>
  );
}

