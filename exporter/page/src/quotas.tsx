// SPDX-License-Identifier: Apache-2.0

import { h } from "preact";
import { useEffect } from "preact/hooks";
import { change, type Address } from "./address";
import type { Alert, Quota } from "./api";
import { duration, moment, percent, safe, used } from "./format";
import { Bar, Field, Problem, Scroll, Section, Source, Text, useFetch, useTick } from "./shared";

const most = 500; // rows of quotas that are shown

export function Quotas({ address }: { address: Address }) {
  const model = useTick();
  const quotas = useFetch<{ quotas: Quota[]; clock_distrust: string }>("api/v1/quotas");
  const alerts = useFetch<{ alerts: Alert[] }>("api/v1/alerts");
  const firing = [...model.alerts.keys()].sort().join();
  useEffect(() => {
    quotas.again();
    alerts.again();
  }, [model.quotas, firing]);
  const filter = address.set.get("filter") ?? "";
  const passes = (...of: string[]) => filter.toLowerCase().split(/\s+/).every((word) => of.some((t) => t.toLowerCase().includes(word)));
  const list = (quotas.body?.quotas ?? []).filter((q) => passes(q.quota, q.key, q.name)).sort((a, b) => b.ratio - a.ratio);
  const fired = (alerts.body?.alerts ?? []).filter((a) => passes(a.quota, a.key, a.summary)).reverse().sort((a, b) => Number(b.state === "firing") - Number(a.state === "firing"));
  return (
    <div class="quotas">
      <h1>Quotas and alerts</h1>
      <div class="tools" role="group" aria-label="What is shown"><Field id="filter" label="Filter" value={filter} hint="quota, container" set={(v) => change({ filter: v })} /></div>
      {quotas.body?.clock_distrust && <p class="notice" role="note"><strong>No period ends now: </strong>the host's clock is not trusted: {safe(quotas.body.clock_distrust)}</p>}
      {quotas.status === 503 ? <p class="note">There are no quotas here. The configuration has them under <code>quotas</code>.</p> : <Problem of={quotas} />}
      {quotas.body && (quotas.body.quotas.length === 0
        ? <p class="note">There are no quotas here. The configuration has them under <code>quotas</code>.</p>
        : <Section title={`Quotas, those that are used most first`}><QuotaTable quotas={list.slice(0, most)} />{list.length > most && <p class="note">The first {most} of {list.length} are shown; filter for the others.</p>}</Section>)}
      {alerts.body && (
        <Section title="Alerts">
          {fired.length === 0 ? <p class="note">None has fired.</p> : <AlertTable alerts={fired.slice(0, most)} />}
        </Section>
      )}
      <Source of={["api/v1/quotas", "api/v1/alerts"]} />
    </div>
  );
}

const soon = (text: string | null) => (text ? duration(Date.parse(text) - Date.now()) : "");

export function QuotaTable({ quotas }: { quotas: Quota[] }) {
  return (
    <Scroll label="Quotas"><table class="plain quotalist">
      <thead><tr><th scope="col">Quota</th><th scope="col">Of</th><th scope="col" class="number">Used</th><th scope="col" class="number">Limit</th><th scope="col" class="bars">Share</th><th scope="col" class="number">Projected</th><th scope="col">Resets</th><th scope="col">Levels</th></tr></thead>
      <tbody>
        {quotas.map((q) => {
          const kind = q.ratio >= 1 ? "over" : q.levels.some((l) => l.firing) ? "near" : "";
          const over = q.projected !== null && q.projected > q.limit;
          return (
            <tr key={`${q.quota} ${q.key}`}>
              <th scope="row"><Text>{q.quota}</Text></th>
              <td class="of" title={safe(q.name || q.key)}><Text>{q.name || q.key || "all"}</Text> {q.per && <span class="where">per {safe(q.per)}</span>}</td>
              <td class="number">{used(q.used, q.unit, q.decimal)}</td>
              <td class="number">{used(q.limit, q.unit, q.decimal)}</td>
              <td class="bars"><span class="quota"><Bar share={q.ratio} kind={kind} /><span class="figure">{percent(q.ratio)}</span></span></td>
              <td class={`number ${over ? "warn" : ""}`}>{q.projected === null ? <span class="none">–</span> : used(q.projected, q.unit, q.decimal)}</td>
              <td title={moment(q.period_end)}>{q.period_end ? `in ${soon(q.period_end)}` : <span class="quiet">{safe(q.every) || "never"}</span>}</td>
              <td>{q.levels.map((l) => <span key={l.level} class={`level ${l.firing ? "firing" : ""}`}>{safe(l.level)}{l.firing && <span class="hidden"> fires</span>}</span>)}</td>
            </tr>
          );
        })}
      </tbody>
    </table></Scroll>
  );
}

function AlertTable({ alerts }: { alerts: Alert[] }) {
  return (
    <Scroll label="Alerts"><table class="plain">
      <thead><tr><th scope="col">State</th><th scope="col">Quota</th><th scope="col">Of</th><th scope="col">Level</th><th scope="col">Since</th><th scope="col">Until</th><th scope="col">What</th></tr></thead>
      <tbody>
        {alerts.map((a) => (
          <tr key={a.id + a.starts_at}>
            <td><span class={`level ${a.state === "firing" ? "firing" : ""}`}>{safe(a.state)}</span></td>
            <th scope="row"><Text>{a.quota}</Text></th><td class="of" title={safe(a.key)}><Text>{a.key}</Text></td><td>{safe(a.level)}</td>
            <td>{moment(a.starts_at)}</td><td>{moment(a.ends_at)}</td><td class="long"><Text>{a.summary}</Text></td>
          </tr>
        ))}
      </tbody>
    </table></Scroll>
  );
}
