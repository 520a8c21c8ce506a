// SPDX-License-Identifier: Apache-2.0

import { h } from "preact";
import { change, type Address } from "./address";
import { path, type HistoryRow } from "./api";
import { compare, count, digits, plus, type Count } from "./exact";
import { amount, day, percent, safe, type Unit } from "./format";
import { Bar, Choice, Field, Figure, Problem, Scroll, Section, Source, Text, useFetch } from "./shared";

export const steps: Record<string, string> = { hour: "hour", day: "day", month: "month" };
const sums: Record<string, string> = { name: "name", container: "container", pod: "pod", namespace: "namespace" };

interface Used {
  receive: Count;
  transmit: Count;
}

/** Sums rows by what of says, in the order in which it comes. */
function sumBy(rows: HistoryRow[], of: (row: HistoryRow) => string): Map<string, Used> {
  const all = new Map<string, Used>();
  for (const row of rows) {
    const key = of(row);
    const sum = all.get(key) ?? { receive: 0, transmit: 0 };
    all.set(key, { receive: plus(sum.receive, count(row.receive.bytes)), transmit: plus(sum.transmit, count(row.transmit.bytes)) });
  }
  return all;
}

const total = (u: Used): Count => plus(u.receive, u.transmit);

/** The beginning of a step as the host's clock shows it, whose offset the time has. */
function startOf(text: string, step: string): string {
  const [date = "", time = ""] = text.split("T");
  if (step === "month") return date.slice(0, 7);
  return step === "day" ? date : `${date} ${time.slice(0, 5)}`;
}

function UsedTable({ of, title, unit, caption, choose, chosen }: {
  of: [string, Used][]; title: string; unit: Unit; caption: string; choose?: (key: string) => void; chosen?: string;
}) {
  const most = Math.max(1, ...of.map(([, u]) => Number(total(u))));
  const all = of.reduce<Used>((s, [, u]) => ({ receive: plus(s.receive, u.receive), transmit: plus(s.transmit, u.transmit) }), { receive: 0, transmit: 0 });
  const cells = (u: Used) => [u.receive, u.transmit, total(u)].map((v, i) => <td key={i} class="number" title={digits(v)}><Figure of={amount(v, unit)} /></td>);
  return (
    <Scroll label="Usage"><table class="plain used">
      <caption class="hidden">{caption}</caption>
      <thead><tr><th scope="col">{title}</th><th scope="col" class="number">Received</th><th scope="col" class="number">Transmitted</th><th scope="col" class="number">Total</th><th scope="col" class="bars"><span class="hidden">Share</span></th></tr></thead>
      <tbody>
        {of.slice(0, 1000).map(([key, u]) => {
          const sum = Number(total(u));
          return (
            <tr key={key} class={chosen === key ? "chosen" : ""}>
              <th scope="row">{choose ? <button type="button" class="text" aria-pressed={chosen === key} onClick={() => choose(chosen === key ? "" : key)} title={safe(key)}><bdi>{safe(key) || "(none)"}</bdi></button> : <Text>{key}</Text>}</th>
              {cells(u)}
              <td class="bars"><Bar share={sum / most} split={sum === 0 ? 0 : Number(u.receive) / sum} /></td>
            </tr>
          );
        })}
      </tbody>
      {of.length > 1 && <tfoot><tr><th scope="row">All</th>{cells(all)}<td class="bars">{of.length > 1000 && `the first 1,000 of ${of.length} are shown`}</td></tr></tfoot>}
    </table></Scroll>
  );
}

const capital = (word: string) => word.charAt(0).toUpperCase() + word.slice(1);

/** What a field for dates takes; the address may have times. */
const date = (text: string) => (/^\d{4}-\d\d-\d\d$/.test(text) ? text : "");

/** What was used in each step, of everything that the parameters leave. */
export function HistoryTable({ parameters, unit, caption }: { parameters: Record<string, string>; unit: Unit; caption: string }) {
  const api = path("api/v1/history", parameters);
  const fetched = useFetch<{ history: HistoryRow[] }>(api, 30_000);
  const step = parameters["step"] ?? "day";
  if (!fetched.body) return fetched.error ? <Problem of={fetched} /> : <p class="note">Reading the ledger…</p>;
  const rows = [...sumBy(fetched.body.history, (r) => startOf(r.start, step))].reverse();
  if (rows.length === 0) return <p class="note">Nothing was counted in this time. What is counted comes here within some ten seconds.</p>;
  return <div><Problem of={fetched} /><UsedTable of={rows} title={capital(step)} unit={unit} caption={caption} /><Source of={[api]} /></div>;
}

export function History({ address, unit }: { address: Address; unit: Unit }) {
  const get = (name: string, other = "") => address.set.get(name) ?? other;
  const step = get("step") in steps ? get("step") : "day";
  const by = get("by", "name");
  const parameters = { step, by, from: get("from"), to: get("to"), name: get("name"), namespace: get("namespace"), label: get("label"), user: get("user") };
  const api = path("api/v1/history", parameters);
  const fetched = useFetch<{ history: HistoryRow[] }>(api, 30_000);
  const rows = fetched.body?.history ?? [];
  const key = get("key");
  const hasKey = rows.some((r) => r.key === key);
  const times = [...sumBy(key !== "" && hasKey ? rows.filter((r) => r.key === key) : rows, (r) => startOf(r.start, step))].reverse();
  const keys = [...sumBy(rows, (r) => r.key)].sort((a, b) => -compare(total(a[1]), total(b[1])));
  const all = keys.reduce<Count>((s, [, u]) => plus(s, total(u)), 0);
  const first = keys[0];
  return (
    <div class="history">
      <h1>History</h1>
      <div class="tools" role="group" aria-label="What is shown">
        <Choice label="Step" value={step} of={steps} set={(v) => change({ step: v === "day" ? "" : v, key: "" })} />
        <Choice label="Sum by" value={by} of={by in sums ? sums : { ...sums, [by]: safe(by) }} set={(v) => change({ by: v === "name" ? "" : v, key: "" })} />
        <Field label="Name" value={get("name")} hint="web-*" set={(name) => change({ name })} />
        <Field label="Namespace" value={get("namespace")} set={(namespace) => change({ namespace })} />
        <Field label="Label" value={get("label")} hint="key=value" set={(label) => change({ label })} />
        <label class="choice"><span>From</span><input type="date" value={date(get("from"))} max={day(new Date())} onChange={(e) => change({ from: e.currentTarget.value })} /></label>
        <label class="choice"><span>Until</span><input type="date" value={date(get("to"))} onChange={(e) => change({ to: e.currentTarget.value })} /></label>
        <a class="button" href={path("api/v1/history", { ...parameters, format: "csv" })} download="nettally-history.csv">CSV</a>
      </div>
      <Problem of={fetched} />
      {fetched.body && rows.length === 0 && <p class="note">Nothing was counted in this time.</p>}
      {!fetched.body && fetched.error === "" && <p class="note">Reading the ledger…</p>}
      {rows.length > 0 && (
        <div class="two">
          <Section title={hasKey && key !== "" ? `By ${step}: ${safe(key)}` : `By ${step}`} aside={hasKey && key !== "" && <button type="button" onClick={() => change({ key: "" })}>Show all</button>}>
            <UsedTable of={times} title={capital(step)} unit={unit} caption={`Usage by ${step}`} />
          </Section>
          <Section title={`By ${safe(by)}`} aside={first && all !== 0 && <span class="note">{safe(first[0]) || "(none)"}: {percent(Number(total(first[1])) / Number(all))}</span>}>
            <UsedTable of={keys} title={capital(safe(by))} unit={unit} caption={`Usage by ${safe(by)}`} choose={(k) => change({ key: k })} chosen={key} />
          </Section>
        </div>
      )}
      <Source of={[api]} />
    </div>
  );
}
