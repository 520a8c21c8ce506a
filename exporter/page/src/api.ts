// SPDX-License-Identifier: Apache-2.0

// What nettally answers; docs/openapi.yaml documents it.

import { parse, type Count } from "./exact";

export interface Totals {
  bytes: Count;
  packets: Count;
  tcp_syn: Count;
  seeded_bytes: Count;
  seeded_packets: Count;
}

/** A container as the stream tells it. */
export interface Identity {
  id: string;
  name: string;
  runtime: string;
  image: string;
  namespace: string;
  pod: string;
  user: string;
  labels: Record<string, string> | null;
  cgroup: string;
  state: string;
  started_at: string | null;
  stopped_at: string | null;
  network: string;
  counted_by: string;
  recalled: boolean;
  part_of: string;
  parent_id: string;
  accounted: boolean;
  reason: string;
  kernel: string;
}

export interface Numbers {
  receive: Totals;
  transmit: Totals;
  tcp: { connects: Count; accepts: Count; connect_failures: Count; resets: Count } | null;
}

export interface ContainersEvent {
  taken_at: string;
  boot_ms: number;
  replace: boolean;
  source: string;
  containers: (Identity & Numbers)[];
}

export interface SampleEvent {
  taken_at: string;
  boot_ms: number;
  containers: ({ id: string } & Numbers)[];
}

type Steps = (number | null)[];

export interface RecentSeries {
  receive_bytes: Steps;
  transmit_bytes: Steps;
}

export interface Recent {
  taken_at: string;
  boot_ms: number;
  step_ms: number;
  end_boot_ms: number;
  steps: number;
  containers: (RecentSeries & { id: string })[];
  others: RecentSeries | null;
}

export interface Foremost {
  quota: string;
  key: string;
  ratio: number;
}

export interface Quota {
  quota: string;
  key: string;
  name: string;
  per: string;
  count: string;
  source: string;
  used: number;
  limit: number;
  unit: string;
  decimal: boolean;
  ratio: number;
  every: string;
  period_start: string | null;
  period_end: string | null;
  projected: number | null;
  levels: { level: string; firing: boolean }[];
  notify: string[];
}

export interface QuotaEvent {
  quotas: Quota[];
  foremost: Record<string, Foremost>;
}

export interface Alert {
  id: string;
  quota: string;
  key: string;
  level: string;
  state: string;
  starts_at: string;
  ends_at: string | null;
  used: number;
  limit: number;
  unit: string;
  ratio: number;
  projected: number;
  summary: string;
  labels: Record<string, string>;
}

export interface Volume {
  bytes: Count;
  packets: Count;
}

/** One direction of an interface, of all interfaces, or by IP. */
export interface Counts extends Volume {
  interface_bytes?: Count;
  interface_packets?: Count;
  seeded_bytes?: Count;
  seeded_packets?: Count;
  mended_bytes?: Count;
  dropped_packets?: Count | null;
  error_packets?: Count | null;
  undelivered_packets?: Count | null;
  tcp_syn: Count;
  tcp_synack: Count;
  tcp_rst: Count;
  tcp_fin: Count;
  protocols: Record<string, Volume>;
  families: Record<string, Volume>;
  loopback?: Volume;
}

export interface Interface {
  name: string;
  host_interface: string;
  hook: string;
  at: string;
  attached_at: string | null;
  reason: string;
  seeded_bytes: Count;
  mended_bytes: Count;
  receive: Counts;
  transmit: Counts;
}

/** A container with all its numbers. */
export interface Details extends Omit<Identity, "network" | "counted_by" | "part_of" | "parent_id" | "recalled"> {
  network_mode: string;
  parent_id: string;
  on_host: boolean;
  no_interface: boolean;
  interfaces: Interface[];
  receive: Counts;
  transmit: Counts;
  ip: { receive: Counts; transmit: Counts } | null;
  tcp: Record<string, Count | null> | null;
}

export interface HistoryRow {
  start: string;
  end: string;
  key: string;
  receive: { bytes: Count; packets: Count; tcp_syn: Count };
  transmit: { bytes: Count; packets: Count; tcp_syn: Count };
}

/** What went wrong, in the words of nettally where it said any. */
export class APIError extends Error {
  constructor(
    message: string,
    readonly status: number,
  ) {
    super(message);
  }
}

/** Fetches JSON from a path relative to the page. */
export async function get<T>(path: string, signal?: AbortSignal): Promise<T> {
  let answer: Response;
  try {
    answer = await fetch(path, { signal: signal ?? null, headers: { Accept: "application/json" } });
  } catch (err) {
    if (signal?.aborted) throw err;
    throw new APIError("nettally can't be reached", 0);
  }
  const text = await answer.text();
  let body: unknown = null;
  try {
    body = parse(text);
  } catch {
    // What a proxy says is no JSON.
  }
  if (answer.ok && body !== null) return body as T;
  const said = (body as { error?: unknown } | null)?.error;
  throw new APIError(typeof said === "string" ? said : `the answer is ${answer.status} ${answer.statusText}`, answer.status);
}

/** The path of an API with parameters; those that are empty are left out. */
export function path(of: string, parameters: Record<string, string> = {}): string {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) if (value !== "") query.set(name, value);
  const text = query.toString();
  return text === "" ? of : `${of}?${text}`;
}
