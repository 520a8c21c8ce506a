// SPDX-License-Identifier: Apache-2.0

import { compare, count, minus, parse, plus, type Count } from "./exact";
import type {
  Alert, ContainersEvent, Foremost, Identity, Numbers, Quota, QuotaEvent, Recent, RecentSeries, SampleEvent, Totals,
} from "./api";
import type { Message } from "./hub";

/** What is counted of a direction, and how fast it grows: null is not known. */
export interface Direction {
  bytes: Count;
  packets: Count;
  tcp_syn: Count;
  seeded_bytes: Count;
  seeded_packets: Count;
}

export interface Rates {
  receiveBytes: number;
  transmitBytes: number;
  receivePackets: number;
  transmitPackets: number;
  receiveSYN: number;
  transmitSYN: number;
}

/** TCP connections: those that were established, and those that the container began in vain. */
export interface Connections<T> {
  opened: T;
  failed: T;
}

/** A container that the stream tells of. */
export class Row {
  receive: Direction;
  transmit: Direction;
  rates: Rates | null = null; // null while none is known
  tcp: Connections<Count> | null; // null where they are not counted
  connections: Connections<number> | null = null; // a second, null while that is not known
  smooth = { receive: 0, transmit: 0, packets: 0, syn: 0, opened: 0, failed: 0 }; // bytes and numbers a second, to sort by
  track: Track | null = null; // null while nothing has passed
  project: string;
  text: string; // what a filter looks at

  constructor(
    public is: Identity,
    numbers: Numbers,
    public at: number, // boot_ms of the numbers
  ) {
    this.receive = directionOf(numbers.receive);
    this.transmit = directionOf(numbers.transmit);
    this.tcp = connectionsOf(numbers);
    this.project = projectOf(is);
    this.text = textOf(is);
  }

  get counted(): boolean {
    return this.is.counted_by !== "";
  }

  get stopped(): boolean {
    return this.is.state !== "running";
  }
}

function directionOf(t: Totals): Direction {
  return {
    bytes: count(t.bytes), packets: count(t.packets), tcp_syn: count(t.tcp_syn),
    seeded_bytes: count(t.seeded_bytes), seeded_packets: count(t.seeded_packets),
  };
}

function connectionsOf({ tcp }: Numbers): Connections<Count> | null {
  return tcp && { opened: plus(count(tcp.connects), count(tcp.accepts)), failed: count(tcp.connect_failures) };
}

function projectOf(is: Identity): string {
  return is.labels?.["com.docker.compose.project"] ?? is.labels?.["io.podman.compose.project"] ?? "";
}

function textOf(is: Identity): string {
  const labels = Object.entries(is.labels ?? {}).map(([k, v]) => `${k}=${v}`);
  return [is.name, is.namespace, is.pod, is.image, is.id, ...labels].join("\n").toLowerCase();
}

/** Bytes a second of a container at each of the model's times. */
export interface Track {
  receive: Float32Array;
  transmit: Float32Array;
}

/** How many points are kept: fifteen minutes of seconds, and as many again before they are moved. */
const room = 1_800;
const kept = 900;
const window_ms = 15 * 60_000;

/** How long the rates that rows are sorted by take to follow, in ms. */
const smoothing = 3_000;

/**
 * All that is known of the host now. It follows the stream, and tells those who subscribe
 * after each sample or change.
 */
export class Model {
  rows = new Map<string, Row>();
  quotas: Quota[] = [];
  foremost: Record<string, Foremost> = {};
  alerts = new Map<string, Alert>();
  source = "";
  takenAt: Date | null = null;
  boot = 0; // boot_ms of the last sample
  waitingSince: number | null = null;
  started = false; // the first containers have come
  identities = 0; // how often containers came, ended, went or had something new about them

  // The plot's points: times are the ends of what the rates of each point are about.
  times = new Float64Array(room); // boot_ms
  points = 0;
  receive = new Float32Array(room); // of the host
  transmit = new Float32Array(room);

  fills = 0; // how often points came from the API

  private listeners = new Set<() => void>();
  /** Called when the points have a gap that the API can fill. */
  onGap: () => void = () => {};

  subscribe(listener: () => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  hear(message: Message): void {
    switch (message.kind) {
      case "waiting":
        this.waitingSince = message.since;
        break;
      case "open":
        this.waitingSince = null;
        return;
      case "event":
        if (!this.event(message.name, message.data)) return;
    }
    for (const listener of this.listeners) listener();
  }

  /** The offset of wall time to the time since boot, in ms. */
  get offset(): number {
    return (this.takenAt?.getTime() ?? 0) - this.boot;
  }

  /** Returns whether there is something to show. */
  private event(name: string, data: string): boolean {
    const body = parse(data);
    switch (name) {
      case "containers":
        return this.containers(body as ContainersEvent);
      case "sample":
        this.sample(body as SampleEvent);
        return true;
      case "stopped": {
        const { id, stopped_at } = body as { id: string; stopped_at: string };
        const row = this.rows.get(id);
        if (row) row.is = { ...row.is, state: "stopped", stopped_at };
        this.identities++;
        return false;
      }
      case "removed":
        for (const id of (body as { ids: string[] }).ids) this.rows.delete(id);
        this.identities++;
        return false;
      case "quota":
        ({ quotas: this.quotas, foremost: this.foremost } = body as QuotaEvent);
        return true;
      case "alert": {
        const alert = body as Alert;
        if (alert.state === "firing") this.alerts.set(alert.id, alert);
        else this.alerts.delete(alert.id);
        return true;
      }
    }
    return false;
  }

  private containers(event: ContainersEvent): boolean {
    this.source = event.source;
    this.identities++;
    if (event.replace) {
      const there = new Set(event.containers.map((c) => c.id));
      for (const id of this.rows.keys()) if (!there.has(id)) this.rows.delete(id);
      this.alerts.clear();
      if (event.boot_ms < this.boot) this.rebooted();
    }
    for (const c of event.containers) {
      const row = this.rows.get(c.id);
      if (!row) {
        this.rows.set(c.id, new Row(c, c, event.boot_ms));
        continue;
      }
      const same = row.is.counted_by === c.counted_by && row.is.recalled === c.recalled;
      row.is = c;
      [row.project, row.text] = [projectOf(c), textOf(c)];
      this.renew(row, c, event.boot_ms, same);
    }
    const first = !this.started;
    this.started = true;
    if (event.replace) {
      if (this.boot === 0 || event.boot_ms - this.boot > 15_000) this.onGap();
      if (this.boot !== 0) this.point(event.boot_ms);
      this.clock(event);
    }
    return first || event.replace;
  }

  private sample(event: SampleEvent): void {
    if (event.boot_ms < this.boot) this.rebooted();
    for (const c of event.containers) {
      const row = this.rows.get(c.id);
      if (row) this.renew(row, c, event.boot_ms, true);
    }
    for (const row of this.rows.values()) {
      if (row.at >= event.boot_ms) continue;
      row.at = event.boot_ms; // it did not change
      if (row.counted) row.rates = still;
      if (row.tcp) row.connections = none;
    }
    const elapsed = event.boot_ms - this.boot;
    this.smooth(elapsed);
    if (this.boot !== 0) this.point(event.boot_ms);
    this.clock(event);
  }

  private clock(event: { taken_at: string; boot_ms: number }): void {
    this.boot = event.boot_ms;
    this.takenAt = new Date(event.taken_at);
  }

  /** Gives a row its new totals, and its rates where these continue the ones before. */
  private renew(row: Row, numbers: Numbers, at: number, same: boolean): void {
    const receive = directionOf(numbers.receive);
    const transmit = directionOf(numbers.transmit);
    const tcp = connectionsOf(numbers);
    const elapsed = (at - row.at) / 1000;
    if (!same || elapsed < 0) row.rates = row.connections = null;
    else if (elapsed > 0) {
      row.rates = ratesOf(row, receive, transmit, elapsed);
      row.connections = connectionsBetween(row.tcp, tcp, elapsed);
    }
    [row.receive, row.transmit, row.tcp, row.at] = [receive, transmit, tcp, at];
    if (!row.counted) row.rates = null;
  }

  /** No difference is one over a reboot of the host, and the times begin anew. */
  private rebooted(): void {
    this.points = 0;
    this.boot = 0;
    for (const row of this.rows.values()) {
      row.track = row.rates = row.connections = null;
      row.at = Infinity;
    }
    this.onGap();
  }

  private smooth(elapsed: number): void {
    const weight = elapsed <= 0 || this.boot === 0 ? 1 : 1 - Math.exp(-elapsed / smoothing);
    for (const row of this.rows.values()) {
      const r = row.rates ?? still;
      const s = row.smooth;
      s.receive += weight * (r.receiveBytes - s.receive);
      s.transmit += weight * (r.transmitBytes - s.transmit);
      s.packets += weight * (r.receivePackets + r.transmitPackets - s.packets);
      s.syn += weight * (r.receiveSYN + r.transmitSYN - s.syn);
      const c = row.connections ?? none;
      s.opened += weight * (c.opened - s.opened);
      s.failed += weight * (c.failed - s.failed);
    }
  }

  /** Whether a row's numbers are in another's that is there, too. */
  isPart(row: Row): boolean {
    return row.is.part_of !== "" && this.rows.has(row.is.part_of);
  }

  private point(at: number): void {
    if (this.points > 0 && at <= this.times[this.points - 1]!) return;
    if (this.points === room) this.shift(room - kept);
    const i = this.points++;
    this.times[i] = at;
    let [receive, transmit] = [0, 0];
    for (const row of this.rows.values()) {
      const r = row.rates ?? still;
      if (r.receiveBytes > 0 || r.transmitBytes > 0) {
        row.track ??= newTrack();
        row.track.receive[i] = r.receiveBytes;
        row.track.transmit[i] = r.transmitBytes;
        if (this.isPart(row)) continue;
        receive += r.receiveBytes;
        transmit += r.transmitBytes;
      } else if (row.track) {
        row.track.receive[i] = row.track.transmit[i] = 0;
      }
    }
    this.receive[i] = receive;
    this.transmit[i] = transmit;
  }

  private shift(by: number): void {
    const tracks: Track[] = [this];
    for (const row of this.rows.values()) if (row.track) tracks.push(row.track);
    this.times.copyWithin(0, by, this.points);
    for (const t of tracks) {
      t.receive.copyWithin(0, by, this.points);
      t.transmit.copyWithin(0, by, this.points);
    }
    this.points -= by;
  }

  /**
   * Fills what the stream has not told with the last fifteen minutes: all before its first
   * point, and where it was not followed for a while.
   */
  fill(recent: Recent): void {
    this.fills++;
    const plan = this.plan(recent);
    const times = plan.map((p) => p.at);
    const remap = (values: Float32Array) => {
      const before = values.slice();
      values.fill(0);
      plan.forEach((p, i) => (values[i] = p.point < 0 ? (p.known ? 0 : NaN) : before[p.point]!));
    };
    const tracks: Track[] = [this];
    for (const c of recent.containers) {
      const row = this.rows.get(c.id);
      if (row) row.track ??= newTrack();
    }
    for (const row of this.rows.values()) if (row.track) tracks.push(row.track);
    for (const t of tracks) {
      remap(t.receive);
      remap(t.transmit);
    }
    this.times.set(times);
    this.points = times.length;
    const add = (s: RecentSeries, to: Track) => {
      plan.forEach((p, i) => {
        if (p.point >= 0) return;
        to.receive[i]! += ((s.receive_bytes[p.step] ?? 0) * 1000) / recent.step_ms;
        to.transmit[i]! += ((s.transmit_bytes[p.step] ?? 0) * 1000) / recent.step_ms;
      });
    };
    for (const c of recent.containers) {
      const row = this.rows.get(c.id);
      if (row?.track) add(c, row.track);
      if (!row || !this.isPart(row)) add(c, this);
    }
    if (recent.others) add(recent.others, this);
    for (const listener of this.listeners) listener();
  }

  /** The points of both, by time: those of the stream, and the steps that none of them is in. */
  private plan(recent: Recent): Planned[] {
    const all = [...recent.containers, ...(recent.others ? [recent.others] : [])];
    const steps = Math.max(0, ...all.map((s) => s.receive_bytes.length));
    const first = this.points > 0 ? this.times[0]! : Infinity;
    const plan: Planned[] = [];
    let i = 0;
    for (let step = 0; step < steps; step++) {
      const end = recent.end_boot_ms - (steps - 1 - step) * recent.step_ms;
      const begin = end - recent.step_ms;
      while (i < this.points && this.times[i]! <= begin) plan.push({ at: this.times[i]!, point: i++, step: -1, known: true });
      if (i < this.points && this.times[i]! <= end) continue;
      const known = all.some((s) => (s.receive_bytes[step] ?? null) !== null);
      if (known || end <= first) plan.push({ at: end, point: -1, step, known });
    }
    while (i < this.points) plan.push({ at: this.times[i]!, point: i++, step: -1, known: true });
    return plan.slice(-(room - 1));
  }

  private firstAfter(at: number): number {
    for (let i = 0; i < this.points; i++) if (this.times[i]! > at) return i;
    return this.points;
  }

  /** The first point of the last fifteen minutes. */
  get begin(): number {
    return this.points === 0 ? 0 : this.firstAfter(this.times[this.points - 1]! - window_ms - 1);
  }

  /** The sum of rows, each part of another left out. */
  sum(rows: Iterable<Row>): Sum {
    const sum: Sum = { receive: 0, transmit: 0, rates: { ...still }, some: false, connections: null };
    const among = new Set<string>();
    const list = [...rows];
    for (const row of list) among.add(row.is.id);
    for (const row of list) {
      if (row.connections && !among.has(row.is.parent_id)) {
        const { opened, failed } = sum.connections ?? none;
        sum.connections = { opened: opened + row.connections.opened, failed: failed + row.connections.failed };
      }
      if (!row.counted || (row.is.part_of !== "" && among.has(row.is.part_of))) continue;
      sum.receive = plus(sum.receive, row.receive.bytes);
      sum.transmit = plus(sum.transmit, row.transmit.bytes);
      if (!row.rates) continue;
      sum.some = true;
      for (const key of Object.keys(still) as (keyof Rates)[]) sum.rates[key] += row.rates[key];
    }
    return sum;
  }
}

/** A point of the plot: one that is there (point), or a step of the recent ones. */
interface Planned {
  at: number;
  point: number;
  step: number;
  known: boolean;
}

export interface Sum {
  receive: Count;
  transmit: Count;
  rates: Rates;
  some: boolean; // a rate is known
  connections: Connections<number> | null; // a second
}

export const still: Readonly<Rates> = {
  receiveBytes: 0, transmitBytes: 0, receivePackets: 0, transmitPackets: 0, receiveSYN: 0, transmitSYN: 0,
};

const none: Readonly<Connections<number>> = { opened: 0, failed: 0 };

function newTrack(): Track {
  return { receive: new Float32Array(room), transmit: new Float32Array(room) };
}

/** What grew in between, without what was seeded; null where a total went back. */
function ratesOf(row: Row, receive: Direction, transmit: Direction, seconds: number): Rates | null {
  const grown = (now: Direction, before: Direction, of: "bytes" | "packets") => {
    const seeded = `seeded_${of}` as const;
    return (minus(now[of], before[of]) - minus(now[seeded], before[seeded])) / seconds;
  };
  const syn = (now: Direction, before: Direction) => minus(now.tcp_syn, before.tcp_syn) / seconds;
  const rates = {
    receiveBytes: grown(receive, row.receive, "bytes"),
    transmitBytes: grown(transmit, row.transmit, "bytes"),
    receivePackets: grown(receive, row.receive, "packets"),
    transmitPackets: grown(transmit, row.transmit, "packets"),
    receiveSYN: syn(receive, row.receive),
    transmitSYN: syn(transmit, row.transmit),
  };
  return Object.values(rates).some((v) => v < 0) ? null : rates;
}

/** The connections a second between two totals; null where one is not known, or they went back. */
function connectionsBetween(before: Connections<Count> | null, now: Connections<Count> | null, seconds: number): Connections<number> | null {
  if (!before || !now) return null;
  const [opened, failed] = [minus(now.opened, before.opened), minus(now.failed, before.failed)];
  return opened < 0 || failed < 0 ? null : { opened: opened / seconds, failed: failed / seconds };
}

/** Compares rows by a total of both directions. */
export function byTotal(a: Row, b: Row): number {
  return compare(plus(a.receive.bytes, a.transmit.bytes), plus(b.receive.bytes, b.transmit.bytes));
}
