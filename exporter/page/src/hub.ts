// SPDX-License-Identifier: Apache-2.0

import { parse } from "./exact";
import type { Alert, ContainersEvent, Identity, Numbers, SampleEvent } from "./api";

/** What a tab is told. data is JSON as the stream had it. */
export type Message =
  | { kind: "event"; name: string; data: string }
  | { kind: "waiting"; since: number }
  | { kind: "open" };

export type Viewer = (message: Message) => void;

/** A tab that is looked at says so every [sign] ms; one that was not heard for [lost] is gone. */
export const sign = 10_000;
const lost = 3 * sign;

const names = ["containers", "sample", "started", "stopped", "removed", "quota", "alert"];

/**
 * Holds one stream for its viewers, while there are any, and begins it again when it breaks.
 * It keeps what a viewer that comes later has to know: the containers, the quotas and the
 * alerts that fire.
 */
export class Hub {
  private viewers = new Map<Viewer, number>(); // and when it was heard last
  private source: EventSource | null = null;
  private address = "";
  private retry: ReturnType<typeof setTimeout> | undefined;
  private pause = 1_000;
  private waitingSince = 0; // 0 while the stream is open

  private known = new Map<string, Identity & Numbers>();
  private frame: Omit<ContainersEvent, "containers" | "replace"> | null = null;
  private quota: string | null = null;
  private alerts = new Map<string, string>();

  /** look says that a viewer is there, or is still there. */
  look(viewer: Viewer, address: string): void {
    const isNew = !this.viewers.has(viewer);
    this.viewers.set(viewer, Date.now());
    if (this.source === null && this.retry === undefined) {
      this.address = address;
      this.waitingSince = Date.now();
      this.open();
    } else if (isNew) {
      this.welcome(viewer);
    }
  }

  /** away says that a viewer does not look any more. */
  away(viewer: Viewer): void {
    this.viewers.delete(viewer);
    if (this.viewers.size === 0) this.close();
  }

  /** sweep takes viewers for gone that were not heard for long: their tabs were closed or have crashed. */
  sweep(): void {
    const now = Date.now();
    for (const [viewer, heard] of this.viewers) if (now - heard > lost) this.away(viewer);
  }

  private open(): void {
    this.retry = undefined;
    const source = new EventSource(this.address);
    this.source = source;
    for (const name of names) {
      source.addEventListener(name, (event) => {
        if (this.source === source) this.pass(name, (event as MessageEvent<string>).data);
      });
    }
    source.onerror = () => {
      if (this.source === source) this.wait();
    };
  }

  /**
   * The browser would connect again by itself after some errors, but not after all of them, and
   * each browser after another time.
   */
  private wait(): void {
    this.source?.close();
    this.source = null;
    if (this.waitingSince === 0) this.waitingSince = Date.now();
    this.tell({ kind: "waiting", since: this.waitingSince });
    this.retry = setTimeout(() => this.open(), this.pause * (0.75 + Math.random() / 2));
    this.pause = Math.min(this.pause * 1.5, 10_000);
  }

  private close(): void {
    this.source?.close();
    this.source = null;
    clearTimeout(this.retry);
    this.retry = undefined;
    this.pause = 1_000;
    this.frame = this.quota = null;
    this.known.clear();
    this.alerts.clear();
  }

  private pass(name: string, data: string): void {
    if (this.waitingSince !== 0) {
      this.waitingSince = 0;
      this.pause = 1_000;
      this.tell({ kind: "open" });
    }
    this.keep(name, data);
    this.tell({ kind: "event", name, data });
  }

  private keep(name: string, data: string): void {
    switch (name) {
      case "containers": {
        const { containers, replace, ...frame } = parse(data) as ContainersEvent;
        if (replace) {
          this.known.clear();
          this.alerts.clear();
        }
        for (const c of containers) this.known.set(c.id, c);
        this.frame = frame;
        break;
      }
      case "sample": {
        const sample = parse(data) as SampleEvent;
        for (const { id, receive, transmit } of sample.containers) {
          const c = this.known.get(id);
          if (c) [c.receive, c.transmit] = [receive, transmit];
        }
        if (this.frame) [this.frame.taken_at, this.frame.boot_ms] = [sample.taken_at, sample.boot_ms];
        break;
      }
      case "stopped": {
        const { id, stopped_at } = parse(data) as { id: string; stopped_at: string };
        const c = this.known.get(id);
        if (c) [c.state, c.stopped_at] = ["stopped", stopped_at];
        break;
      }
      case "removed":
        for (const id of (parse(data) as { ids: string[] }).ids) this.known.delete(id);
        break;
      case "quota":
        this.quota = data;
        break;
      case "alert": {
        const alert = parse(data) as Alert;
        if (alert.state === "firing") this.alerts.set(alert.id, data);
        else this.alerts.delete(alert.id);
        break;
      }
    }
  }

  private welcome(viewer: Viewer): void {
    if (this.waitingSince !== 0) viewer({ kind: "waiting", since: this.waitingSince });
    else viewer({ kind: "open" });
    if (this.frame === null) return;
    const all = { ...this.frame, replace: true, containers: [...this.known.values()] };
    viewer({ kind: "event", name: "containers", data: JSON.stringify(all) });
    if (this.quota !== null) viewer({ kind: "event", name: "quota", data: this.quota });
    for (const data of this.alerts.values()) viewer({ kind: "event", name: "alert", data });
  }

  private tell(message: Message): void {
    for (const viewer of this.viewers.keys()) viewer(message);
  }
}
