// SPDX-License-Identifier: Apache-2.0

import { h, Fragment, type ComponentChildren } from "preact";
import { APIError, path } from "./api";
import { count, digits, type Count } from "./exact";
import { clock, safe } from "./format";
import type { Row } from "./model";
import { ContainerLink, Problem, Scroll, Section, Source, useFetch, useTick } from "./shared";
import { reason } from "./words";

interface Checks {
  checked_at: string;
  checks: { name: string; verdict: string; found: string }[];
}

interface HostState {
  source: string;
  unowned?: { name: string; host_interface: string }[];
  nflog: { group: number; bound: boolean; logged: Count; lost: Count; overruns: Count; ignored: Count; unattributed: Count } | null;
}

// No runtime has this name: the answer has what is the host's, and no container.
const hostPath = path("api/v1/containers", { runtime: "-", all: "true" });

/** The metrics of nettally itself that say whether all is well. Those that are not there are left out. */
const wanted: [name: string, words: string, good: (v: number) => boolean][] = [
  ["nettally_uncounted_packets_total", "Packets that our programs saw and counted for nobody", (v) => v === 0],
  ["nettally_unclassified_packets_total", "Packets counted without their protocol or family", () => true],
  ["nettally_completeness_ratio", "Share of the kernel's packets that were seen", (v) => v >= 1 || Number.isNaN(v)],
  ["nettally_attach_failures_total", "Interfaces that could not be attached to", (v) => v === 0],
  ["nettally_clock_trusted", "The host's clock is trusted: 1", (v) => v === 1],
  ["nettally_ledger_up", "The ledger is written: 1", (v) => v === 1],
  ["nettally_ledger_flush_failures_total", "Writes of the ledger that failed", (v) => v === 0],
  ["nettally_ledger_damaged_total", "Ledgers that were damaged and begun anew", (v) => v === 0],
  ["nettally_watch_degraded", "Containers are found late: 1", (v) => v === 0],
  ["nettally_watch_overflows_total", "Queues of events that ran over; all was listed anew", () => true],
  ["nettally_watch_skipped_directories", "Directories of cgroups that can't be read", (v) => v === 0],
  ["nettally_conntrack_overflows_total", "Queues of connection tracking that ran over", () => true],
  ["nettally_beyond_limits", "Counted together, beyond limits", (v) => v === 0],
  ["nettally_scrape_troubles_total", "Metrics that could not be shown as they are", (v) => v === 0],
  ["nettally_config_last_reload_successful", "The configuration was read: 1", (v) => v === 1],
];
const metricsPath = `metrics?${wanted.map(([name]) => `name[]=${name}`).join("&")}`;

interface Metric {
  name: string;
  labels: string;
  value: string;
}

/** Reads the metrics that are wanted out of Prometheus's text. */
async function metrics(of: string, signal: AbortSignal): Promise<Metric[]> {
  const answer = await fetch(of, { signal, headers: { Accept: "text/plain" } });
  if (!answer.ok) throw new APIError(`the metrics answer ${answer.status}`, answer.status);
  const names = new Set(wanted.map(([name]) => name));
  const found: Metric[] = [];
  for (const line of (await answer.text()).split("\n")) {
    const match = /^([a-z_]+)(?:\{(.*)\})? (\S+)/.exec(line);
    if (match && names.has(match[1]!)) found.push({ name: match[1]!, labels: match[2] ?? "", value: match[3]! });
  }
  return found;
}

type Judgment = "good" | "warn" | "bad" | "unknown";

function judge(good: boolean | null): Judgment {
  return good === null ? "unknown" : good ? "good" : "bad";
}

function Dot({ of }: { of: Judgment }) {
  return <span class={`dot ${of}`} aria-hidden="true" />;
}

function Fact({ title, good, children }: { title: string; good: boolean | null; children: ComponentChildren }) {
  return <div><dt>{title}</dt><dd><Dot of={judge(good)} />{children}</dd></div>;
}

export function Health() {
  const model = useTick();
  const ready = useFetch<{ status: string }>("readyz", 5_000);
  const version = useFetch<{ version: string; revision: string; go_version: string }>("version");
  const host = useFetch<HostState>(hostPath, 15_000);
  const quotas = useFetch<{ clock_distrust: string }>("api/v1/quotas", 15_000);
  const checks = useFetch<Checks>("api/v1/checks", 60_000);
  const numbers = useFetch<Metric[]>(metricsPath, 30_000, metrics);
  const v = version.body;
  const log = host.body?.nflog;
  const rows = [...model.rows.values()].filter((r) => !r.stopped && (!r.counted || r.is.reason !== ""));
  return (
    <div class="health">
      <h1>Health</h1>
      <Section title="nettally">
        <dl class="facts">
          <Fact title="Ready" good={ready.body ? ready.error === "" : ready.error ? false : null}>{ready.error ? safe(ready.error) : ready.body ? "yes" : "…"}</Fact>
          <Fact title="Live numbers" good={model.waitingSince === null && model.started}>{model.waitingSince !== null ? `waiting since ${clock(new Date(model.waitingSince))}` : model.takenAt ? `read at ${clock(model.takenAt)}` : "…"}</Fact>
          <Fact title="Clock" good={quotas.body ? quotas.body.clock_distrust === "" : null}>{quotas.body ? safe(quotas.body.clock_distrust) || "trusted" : quotas.error ? "not known" : "…"}</Fact>
          <Fact title="Numbers from" good={host.body ? true : null}>{host.body ? (host.body.source === "bpf" ? "eBPF programs" : host.body.source === "proc" ? "the kernel's files in /proc, every 5 s" : safe(host.body.source)) : "…"}</Fact>
          <Fact title="Version" good={v ? true : null}>{v ? `${safe(v.version)}, ${safe(v.revision).slice(0, 12)}, ${safe(v.go_version)}` : "…"}</Fact>
          {log && <Fact title={`NFLOG group ${log.group}`} good={log.bound && count(log.lost) === 0}>{log.bound ? "read" : "can't be had now; the log says why"}. {digits(count(log.logged))} packets came, {digits(count(log.lost))} were lost, {digits(count(log.overruns))} times the queue was full, {digits(count(log.ignored))} asked for no connection, {digits(count(log.unattributed))} are of no container that is known.</Fact>}
        </dl>
        <Problem of={host} />
      </Section>
      <Section title="What this host can do, and what to mend">
        <Problem of={checks} />
        {checks.body === null ? checks.error === "" && <p class="note">…</p> : <CheckLines of={checks.body} />}
      </Section>
      <Section title={rows.length === 0 ? "Not counted: none" : "Not counted, or in part"}>
        {rows.length === 0 ? <p class="note">All containers that run are counted.</p> : <Uncounted rows={rows} />}
      </Section>
      {host.body?.unowned && host.body.unowned.length > 0 && (
        <Section title="Interfaces of no container that is known"><p>{host.body.unowned.slice(0, 100).map((i) => <code key={i.host_interface}>{safe(i.host_interface)} </code>)}{host.body.unowned.length > 100 && "…"}</p></Section>
      )}
      <Section title="Self-check, ledger and queues">
        {numbers.body === null ? <p class="note">{numbers.error ? safe(numbers.error) : "…"}</p> : (
          <Scroll label="Self-check"><table class="plain">
            <thead><tr><th scope="col">What</th><th scope="col">Metric</th><th scope="col" class="number">Value</th></tr></thead>
            <tbody>{numbers.body.map((m) => {
              const [, words, good] = wanted.find(([name]) => name === m.name)!;
              return <tr key={m.name + m.labels}><td><Dot of={judge(good(Number(m.value)))} />{words}{!good(Number(m.value)) && <span class="hidden"> (look at this)</span>}</td><td><code>{m.name}{m.labels && `{${safe(m.labels)}}`}</code></td><td class="digits">{m.value}</td></tr>;
            })}</tbody>
          </table></Scroll>
        )}
      </Section>
      <Source of={["readyz", "version", hostPath, "api/v1/quotas", "api/v1/checks", "metrics"]} />
    </div>
  );
}

const verdicts: Record<string, Judgment> = { ok: "good", none: "unknown", warning: "warn", failed: "bad" };

function CheckLines({ of }: { of: Checks }) {
  return (
    <>
      <Scroll label="Checks"><table class="plain checks">
        <thead><tr><th scope="col">Check</th><th scope="col">Verdict</th><th scope="col">What was found</th></tr></thead>
        <tbody>{of.checks.map((c) => <tr key={c.name}><th scope="row"><code>{c.name}</code></th><td><Dot of={verdicts[c.verdict] ?? "unknown"} />{c.verdict}</td><td class="long">{safe(c.found)}</td></tr>)}</tbody>
      </table></Scroll>
      <p class="note">As <code>nettally check</code> says it in a terminal, at {clock(new Date(of.checked_at))}.</p>
    </>
  );
}

function Uncounted({ rows }: { rows: Row[] }) {
  const by = new Map<string, Row[]>();
  for (const row of rows) by.set(row.is.reason, [...(by.get(row.is.reason) ?? []), row]);
  return (
    <Scroll label="Not counted"><table class="plain">
      <thead><tr><th scope="col">Reason</th><th scope="col">Why, and what to do</th><th scope="col">Containers</th></tr></thead>
      <tbody>{[...by].map(([of, list]) => {
        const [why, todo] = reason(of);
        return (
          <tr key={of}><th scope="row"><code>{safe(of)}</code></th><td class="long">{why} <strong>{todo}</strong></td>
            <td class="long">{list.slice(0, 50).map((row, i) => <span key={row.is.id}>{i > 0 && ", "}<ContainerLink row={row} /></span>)}{list.length > 50 && ` and ${list.length - 50} more`}</td></tr>
        );
      })}</tbody>
    </table></Scroll>
  );
}

