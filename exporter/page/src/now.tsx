// SPDX-License-Identifier: Apache-2.0

import { h, type ComponentChildren } from "preact";
import { useEffect, useLayoutEffect, useMemo, useReducer, useRef } from "preact/hooks";
import { change, link, type Address } from "./address";
import { plus, compare, type Count } from "./exact";
import { amount, duration, moment, percent, perSecond, rate, safe, type Unit } from "./format";
import { byTotal, type Model, type Row, type Sum } from "./model";
import { Bar, Choice, ContainerLink, Field, Figure, useTick } from "./shared";
import { StackPlot } from "./stackplot";
import { reason } from "./words";

interface Column {
  title: string;
  label: string; // in words
  number?: boolean;
  width: string; // a class
  key: (row: Row, model: Model) => Count | string;
  cell: (row: Row, unit: Unit, model: Model) => ComponentChildren;
  sum?: (sum: Sum, unit: Unit) => ComponentChildren;
}

const columns: Record<string, Column> = {
  name: { title: "Name", label: "Name", width: "w-name", key: (r) => r.is.name.toLowerCase(), cell: (r) => <NameCell row={r} /> },
  rx: {
    title: "Receive", label: "Receive rate", number: true, width: "w-rate", key: (r) => r.smooth.receive,
    cell: (r, u) => <Figure of={r.rates && rate(r.rates.receiveBytes, u)} />, sum: (s, u) => <Figure of={s.some ? rate(s.rates.receiveBytes, u) : null} />,
  },
  tx: {
    title: "Transmit", label: "Transmit rate", number: true, width: "w-rate", key: (r) => r.smooth.transmit,
    cell: (r, u) => <Figure of={r.rates && rate(r.rates.transmitBytes, u)} />, sum: (s, u) => <Figure of={s.some ? rate(s.rates.transmitBytes, u) : null} />,
  },
  rxtotal: {
    title: "Received", label: "Received in total", number: true, width: "w-total", key: (r) => r.receive.bytes,
    cell: (r, u) => <Figure of={r.counted ? amount(r.receive.bytes, u) : null} />, sum: (s, u) => <Figure of={amount(s.receive, u)} />,
  },
  txtotal: {
    title: "Transmitted", label: "Transmitted in total", number: true, width: "w-total", key: (r) => r.transmit.bytes,
    cell: (r, u) => <Figure of={r.counted ? amount(r.transmit.bytes, u) : null} />, sum: (s, u) => <Figure of={amount(s.transmit, u)} />,
  },
  packets: {
    title: "Packets", label: "Packets a second", number: true, width: "w-small", key: (r) => r.smooth.packets,
    cell: (r) => <Figure of={r.rates && perSecond(r.rates.receivePackets + r.rates.transmitPackets)} />,
    sum: (s) => <Figure of={s.some ? perSecond(s.rates.receivePackets + s.rates.transmitPackets) : null} />,
  },
  syn: {
    title: "SYN", label: "SYN: TCP connection requests a second", number: true, width: "w-small", key: (r) => r.smooth.syn,
    cell: (r) => <Figure of={r.rates && perSecond(r.rates.receiveSYN + r.rates.transmitSYN)} />,
    sum: (s) => <Figure of={s.some ? perSecond(s.rates.receiveSYN + s.rates.transmitSYN) : null} />,
  },
  connections: {
    title: "Conns", label: "TCP connections a second, begun or accepted", number: true, width: "w-small", key: (r) => r.smooth.opened,
    cell: (r) => <Figure of={r.connections && perSecond(r.connections.opened)} />, sum: (s) => <Figure of={s.connections && perSecond(s.connections.opened)} />,
  },
  failures: {
    title: "Failed", label: "TCP connections a second that were begun and failed", number: true, width: "w-small", key: (r) => r.smooth.failed,
    cell: (r) => <Figure of={r.connections && perSecond(r.connections.failed)} />, sum: (s) => <Figure of={s.connections && perSecond(s.connections.failed)} />,
  },
  spark: { title: "Last minute", label: "Last minute", width: "w-spark", key: (r) => r.smooth.receive + r.smooth.transmit, cell: (r, _u, m) => <Spark row={r} model={m} /> },
  quota: { title: "Quota", label: "Quota used", number: true, width: "w-quota", key: (r, m) => m.foremost[r.is.id]?.ratio ?? -1, cell: (r, _u, m) => <QuotaCell row={r} model={m} /> },
  state: { title: "State", label: "State", width: "w-state", key: (r) => stateOf(r)[0], cell: (r) => <StateCell row={r} /> },
  network: { title: "Network", label: "Network", width: "w-text", key: (r) => r.is.network, cell: (r) => <bdi title={safe(r.is.network)}>{safe(r.is.network)}</bdi> },
  project: { title: "Project", label: "Compose project", width: "w-text", key: (r) => r.project, cell: (r) => <bdi>{safe(r.project)}</bdi> },
  namespace: { title: "Namespace", label: "Namespace", width: "w-text", key: (r) => r.is.namespace, cell: (r) => <bdi>{safe(r.is.namespace)}</bdi> },
  image: { title: "Image", label: "Image", width: "w-text", key: (r) => r.is.image, cell: (r) => <bdi title={safe(r.is.image)}>{safe(r.is.image)}</bdi> },
};

const usual = ["name", "rx", "tx", "rxtotal", "txtotal", "packets", "syn", "spark", "quota", "state"];

function NameCell({ row }: { row: Row }) {
  const where = row.is.namespace ? `${row.is.namespace}/${row.is.pod}` : row.project;
  return <div class="namecell"><ContainerLink row={row} />{where && <span class="where" title={safe(where)}><bdi>{safe(where)}</bdi></span>}</div>;
}

/** What a row's state is in a word, and in a sentence. */
function stateOf(row: Row): [word: string, sentence: string, kind: string] {
  if (row.stopped) return ["ended", row.is.stopped_at ? `ended ${moment(row.is.stopped_at)}` : "ended", "quiet"];
  if (!row.counted) return ["not counted", reason(row.is.reason)[0], "warn"];
  if (row.is.counted_by === "cgroup") return ["by IP", "running; counted by its cgroup, from the IP header on", ""];
  if (row.is.reason !== "") return ["in part", reason(row.is.reason)[0], "warn"];
  return ["running", row.is.started_at ? `running since ${moment(row.is.started_at)}` : "running", ""];
}

function StateCell({ row }: { row: Row }) {
  const [word, sentence, kind] = stateOf(row);
  const ago = row.stopped && row.is.stopped_at ? ` ${duration(Date.now() - Date.parse(row.is.stopped_at))} ago` : "";
  return <span class={`state ${kind}`} title={sentence}>{word}{ago}</span>;
}

function QuotaCell({ row, model }: { row: Row; model: Model }) {
  const q = model.foremost[row.is.id];
  if (!q) return null;
  const kind = q.ratio >= 1 ? "over" : q.ratio >= 0.8 ? "near" : "";
  return <span class="quota" title={safe(q.quota)}><Bar share={q.ratio} kind={kind} /><span class="figure">{percent(q.ratio)}</span></span>;
}

function Spark({ row, model }: { row: Row; model: Model }) {
  const { track } = row;
  if (!track || model.points < 2) return null;
  const [width, height] = [88, 18];
  const end = model.times[model.points - 1]!;
  let max = 0;
  let first = model.points - 1;
  for (; first >= 0 && end - model.times[first]! <= 60_000; first--) max = Math.max(max, (track.receive[first]! || 0) + (track.transmit[first]! || 0));
  if (max === 0) return null;
  const x = (i: number) => (Math.max(0, width * (1 - (end - model.times[i]!) / 60_000))).toFixed(1);
  let d = `M${x(Math.max(first, 0))} ${height}`;
  for (let i = first + 1; i < model.points; i++) {
    const y = (height - (((track.receive[i]! || 0) + (track.transmit[i]! || 0)) / max) * (height - 1)).toFixed(1);
    d += `V${y}H${x(i)}`;
  }
  return <svg class="spark" viewBox={`0 0 ${width} ${height}`} width={width} height={height} aria-hidden="true"><path d={`${d}V${height}Z`} /></svg>;
}

/** Whether a row passes a filter: each word has to be in it, and a word with * or ? is a glob. */
function filterOf(words: string): (row: Row) => boolean {
  const tests = words.toLowerCase().split(/\s+/).filter(Boolean).map((word) => {
    if (!/[*?]/.test(word)) return (row: Row) => row.text.includes(word);
    const pattern = word.replace(/[.+^${}()|[\]\\]/g, "\\$&").replace(/\*/g, ".*").replace(/\?/g, ".");
    const glob = new RegExp(`^${pattern}$`, "m");
    return (row: Row) => glob.test(row.text);
  });
  return (row) => tests.every((t) => t(row));
}

const groups: Record<string, string> = { "": "nothing", project: "project", namespace: "namespace", pod: "pod" };

function groupKey(by: string): (row: Row) => string {
  switch (by) {
    case "project":
      return (r) => r.project;
    case "namespace":
      return (r) => r.is.namespace;
    case "pod":
      return (r) => (r.is.pod ? `${r.is.namespace}/${r.is.pod}` : "");
    default: {
      const label = by.slice("label:".length);
      return (r) => r.is.labels?.[label] ?? "";
    }
  }
}

type Line = { group: string; rows: Row[]; id: string } | { row: Row; id: string };

/** The settings of the table that decide which line is where. */
interface Order {
  sort: string;
  reverse: boolean;
  filter: string;
  group: string;
  ended: boolean;
  closed: ReadonlySet<string>;
}

function orderRows(rows: Row[], by: Order, model: Model): Row[] {
  const column = columns[by.sort] ?? columns["rx"]!;
  const keys = new Map(rows.map((r) => [r, column.key(r, model)]));
  const sign = (column.number || by.sort === "spark" ? -1 : 1) * (by.reverse ? -1 : 1);
  return rows.sort((a, b) => {
    const [x, y] = [keys.get(a)!, keys.get(b)!];
    const c = typeof x === "string" ? (x < (y as string) ? -1 : x > (y as string) ? 1 : 0) : compare(x, y as Count);
    return sign * c || -byTotal(a, b) || (a.is.id < b.is.id ? -1 : 1);
  });
}

function linesOf(model: Model, by: Order): Line[] {
  const passes = filterOf(by.filter);
  const rows = [...model.rows.values()].filter((r) => (by.ended || !r.stopped) && passes(r));
  orderRows(rows, by, model);
  if (by.group === "") return rows.map((row) => ({ row, id: row.is.id }));
  const key = groupKey(by.group);
  const sets = new Map<string, Row[]>();
  for (const row of rows) {
    const k = key(row);
    const set = sets.get(k);
    if (set) set.push(row);
    else sets.set(k, [row]);
  }
  const numeric = columns[by.sort]?.number;
  const weight = (set: Row[]) => set.reduce<Count>((s, r) => {
    const v = columns[by.sort]!.key(r, model);
    return typeof v === "string" ? s : plus2(s, v);
  }, 0);
  const all = [...sets].map(([k, set]) => ({ k, set, w: numeric ? weight(set) : 0 }));
  all.sort((a, b) => (numeric ? compare(b.w, a.w) * (by.reverse ? -1 : 1) : 0) || (a.k < b.k ? -1 : 1));
  return all.flatMap(({ k, set }): Line[] => [
    { group: k, rows: set, id: `group:${k}` },
    ...(by.closed.has(k) ? [] : set.map((row) => ({ row, id: row.is.id }))),
  ]);
}

/** Smoothed rates are no integers, which plus is for. */
function plus2(a: Count, b: Count): Count {
  return typeof a === "number" && typeof b === "number" ? a + b : plus(a, b);
}

const settle = 3_000; // ms that lines stay where they are

/** The lines, in an order that changes every three seconds at most, and at once with the settings. */
function useLines(model: Model, by: Order): Line[] {
  const was = useRef<{ at: number; key: string; identities: number; lines: Line[] } | undefined>(undefined);
  const key = JSON.stringify([by.sort, by.reverse, by.filter, by.group, by.ended, [...by.closed]]);
  const now = performance.now();
  const old = was.current;
  if (!old || old.key !== key || now - old.at >= settle || old.identities !== model.identities) {
    was.current = { at: now, key, identities: model.identities, lines: linesOf(model, by) };
  }
  return was.current!.lines;
}

const height = 32; // px of a line, as style.css has it

/** The part of the lines that is on the screen, with some more on both sides. */
function useWindow(count: number): [first: number, last: number, ref: { current: HTMLTableSectionElement | null }] {
  const body = useRef<HTMLTableSectionElement>(null);
  const [, again] = useReducer((n: number) => n + 1, 0);
  const at = useRef({ first: 0, last: 60 });
  const measure = () => {
    const top = body.current ? -body.current.getBoundingClientRect().top : 0;
    const first = Math.max(0, Math.floor(top / height) - 10);
    const last = Math.max(0, Math.ceil((top + innerHeight) / height) + 10);
    const moved = Math.abs(first - at.current.first) > 4 || Math.abs(last - at.current.last) > 4;
    if (moved) at.current = { first, last };
    return moved;
  };
  useLayoutEffect(() => {
    let frame = 0;
    const changed = () => {
      if (frame === 0) frame = requestAnimationFrame(() => ((frame = 0), measure() && again(null as never)));
    };
    addEventListener("scroll", changed, { passive: true });
    addEventListener("resize", changed);
    changed();
    return () => (removeEventListener("scroll", changed), removeEventListener("resize", changed), cancelAnimationFrame(frame));
  }, []);
  const first = Math.min(at.current.first, Math.max(0, count - 1));
  return [first, Math.min(count, Math.max(at.current.last, first + 20)), body];
}

export function Now({ address, unit }: { address: Address; unit: Unit }) {
  const model = useTick();
  const get = (name: string) => address.set.get(name) ?? "";
  const chosen = get("cols").split(",").filter((c) => c in columns);
  const shown = chosen.length > 0 ? chosen : usual;
  const closed = useMemo(() => new Set(get("closed").split(",").slice(0, -1).map(decodeURIComponent)), [address]);
  const by: Order = {
    sort: get("sort") in columns ? get("sort") : "rx", reverse: get("reverse") !== "", filter: get("filter"),
    group: get("group"), ended: get("ended") !== "", closed,
  };
  const lines = useLines(model, by);
  useSlash();
  const rows = [...model.rows.values()];
  const host = model.sum(rows);
  const running = rows.filter((r) => !r.stopped).length;
  const uncounted = rows.filter((r) => !r.stopped && !r.counted).length;
  return (
    <div class="now">
      <h1 class="hidden">Now</h1>
      <dl class="tiles">
        <div class="rx"><dt>Receive</dt><dd id="host-receive"><Figure of={host.some ? rate(host.rates.receiveBytes, unit) : null} /></dd></div>
        <div class="tx"><dt>Transmit</dt><dd id="host-transmit"><Figure of={host.some ? rate(host.rates.transmitBytes, unit) : null} /></dd></div>
        <div><dt>Packets</dt><dd><Figure of={host.some ? perSecond(host.rates.receivePackets + host.rates.transmitPackets) : null} /></dd></div>
        <div><dt>SYN</dt><dd><Figure of={host.some ? perSecond(host.rates.receiveSYN + host.rates.transmitSYN) : null} /></dd></div>
        {host.connections && <div><dt>TCP connections</dt><dd><Figure of={perSecond(host.connections.opened)} /></dd></div>}
        {host.connections && <div><dt>Failed</dt><dd><Figure of={perSecond(host.connections.failed)} /></dd></div>}
        <div><dt>Containers</dt><dd><span class="figure">{running}</span>{uncounted > 0 && <a class="aside" href={link("health")}>{uncounted} not counted</a>}</dd></div>
      </dl>
      <StackPlot unit={unit} />
      <Tools model={model} address={address} by={by} shown={shown} />
      <Table model={model} lines={lines} by={by} shown={shown} unit={unit} />
    </div>
  );
}

/** The / key goes to the filter, as in most tools. */
function useSlash(): void {
  useEffect(() => {
    const pressed = (e: KeyboardEvent) => {
      const typing = e.target instanceof HTMLElement && /^(INPUT|SELECT|TEXTAREA)$/.test(e.target.tagName);
      if (e.key !== "/" || typing || e.ctrlKey || e.metaKey || e.altKey) return;
      e.preventDefault();
      document.getElementById("filter")?.focus();
    };
    addEventListener("keydown", pressed);
    return () => removeEventListener("keydown", pressed);
  }, []);
}

function Tools({ model, by, shown }: { model: Model; address: Address; by: Order; shown: string[] }) {
  const known = useMemo(() => {
    const labels = new Set<string>();
    for (const row of model.rows.values()) for (const key of Object.keys(row.is.labels ?? {})) if (labels.size < 200) labels.add(key);
    return Object.fromEntries([...labels].sort().map((l) => [`label:${l}`, `label ${safe(l).slice(0, 60)}`]));
  }, [model.identities]);
  const choices: Record<string, string> = { ...groups, ...known };
  if (!(by.group in choices)) choices[by.group] = safe(by.group);
  const toggle = (id: string, on: boolean) => {
    const next = Object.keys(columns).filter((c) => (c === id ? on : shown.includes(c)));
    change({ cols: next.join() === usual.join() ? "" : next.join() });
  };
  return (
    <div class="tools" role="group" aria-label="Table">
      <Field id="filter" label="Filter" value={by.filter} hint="web-*  namespace  label=value" set={(filter) => change({ filter })} />
      <Choice label="Group by" value={by.group} of={choices} set={(group) => change({ group })} />
      <label class="check"><input type="checkbox" checked={by.ended} onChange={(e) => change({ ended: e.currentTarget.checked ? "1" : "" })} /> ended ones</label>
      <details class="columns">
        <summary>Columns</summary>
        <div class="menu">
          {Object.entries(columns).map(([id, c]) => (
            <label key={id} class="check"><input type="checkbox" checked={shown.includes(id)} disabled={id === "name"} onChange={(e) => toggle(id, e.currentTarget.checked)} /> {c.label}</label>
          ))}
        </div>
      </details>
    </div>
  );
}

function Table({ model, lines, by, shown, unit }: { model: Model; lines: Line[]; by: Order; shown: string[]; unit: Unit }) {
  const [first, last, body] = useWindow(lines.length);
  return (
    <table class="live" aria-label="Containers" aria-rowcount={lines.length + 1}>
      <colgroup>{shown.map((id) => <col key={id} class={`${columns[id]!.width} k-${id}`} />)}</colgroup>
      <thead><tr aria-rowindex={1}>{shown.map((id) => <Head key={id} id={id} by={by} />)}</tr></thead>
      <tbody ref={body}>
        {first > 0 && <tr key="above" aria-hidden="true" class="space"><td colSpan={shown.length} style={{ height: `${first * height}px` }} /></tr>}
        {lines.slice(first, last).map((line, i) => ("row" in line
          ? <RowLine key={line.id} row={line.row} index={first + i} shown={shown} unit={unit} model={model} inGroup={by.group !== ""} />
          : <GroupLine key={line.id} line={line} index={first + i} shown={shown} unit={unit} model={model} closed={by.closed} />))}
        {last < lines.length && <tr key="below" aria-hidden="true" class="space"><td colSpan={shown.length} style={{ height: `${(lines.length - last) * height}px` }} /></tr>}
        {lines.length === 0 && <tr class="empty"><td colSpan={shown.length}>{!model.started ? "Waiting for the first numbers…" : model.rows.size === 0 ? "No containers run here." : "No container passes the filter."}</td></tr>}
      </tbody>
    </table>
  );
}

function Head({ id, by }: { id: string; by: Order }) {
  const c = columns[id]!;
  const sorted = by.sort === id;
  const down = (c.number || id === "spark") !== by.reverse;
  const next = () => change({ sort: id === "rx" ? "" : id, reverse: sorted && !by.reverse ? "1" : "" });
  return (
    <th scope="col" class={`k-${id} ${c.number ? "number" : ""}`} {...(sorted ? { "aria-sort": down ? "descending" : "ascending" } as const : {})}>
      <button type="button" onClick={next} title={`Sort by: ${c.label}`} aria-label={c.label}>{c.title}<span class="arrow" aria-hidden="true">{sorted ? (down ? "▾" : "▴") : ""}</span></button>
    </th>
  );
}

function RowLine({ row, index, shown, unit, model, inGroup }: { row: Row; index: number; inGroup: boolean; shown: string[]; unit: Unit; model: Model }) {
  return (
    <tr aria-rowindex={index + 2} data-id={row.is.id} class={`${row.stopped ? "ended" : ""} ${index % 2 ? "odd" : ""} ${inGroup ? "member" : ""}`}>
      {shown.map((id) => {
        const c = columns[id]!;
        const content = c.cell(row, unit, model);
        return id === "name" ? <th key={id} scope="row" class="k-name">{content}</th> : <td key={id} class={`k-${id} ${c.number ? "number" : ""}`}>{content}</td>;
      })}
    </tr>
  );
}

function GroupLine({ line, index, shown, unit, model, closed }: { line: { group: string; rows: Row[] }; index: number; shown: string[]; unit: Unit; model: Model; closed: ReadonlySet<string> }) {
  const sum = model.sum(line.rows);
  const open = !closed.has(line.group);
  const toggle = () => {
    const next = new Set(closed);
    if (open) next.add(line.group);
    else next.delete(line.group);
    change({ closed: [...next].map((k) => `${encodeURIComponent(k)},`).join("") });
  };
  const name = safe(line.group) || "(none)";
  return (
    <tr aria-rowindex={index + 2} class="group">
      {shown.map((id) => {
        const c = columns[id]!;
        if (id === "name") {
          return <th key={id} scope="row" class="k-name"><button type="button" aria-expanded={open} onClick={toggle} title={name}><span class="arrow" aria-hidden="true">{open ? "▾" : "▸"}</span> <bdi>{name}</bdi> <span class="where">{line.rows.length}</span></button></th>;
        }
        return <td key={id} class={`k-${id} ${c.number ? "number" : ""}`}>{c.sum?.(sum, unit)}</td>;
      })}
    </tr>
  );
}
