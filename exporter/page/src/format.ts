// SPDX-License-Identifier: Apache-2.0

import type { Count } from "./exact";

/** How amounts are shown: bytes by 1024, bytes by 1000, or bits by 1000. */
export type Unit = "iec" | "si" | "bits";

export const units: Record<Unit, string> = { iec: "KiB", si: "kB", bits: "kbit" };

const prefixes: Record<Unit, string[]> = {
  iec: ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"],
  si: ["B", "kB", "MB", "GB", "TB", "PB", "EB"],
  bits: ["bit", "kbit", "Mbit", "Gbit", "Tbit", "Pbit", "Ebit"],
};

/** A number and its unit, which a table sets apart. */
export type Amount = [number: string, unit: string];

/** Three digits that count, so that columns stay as wide as they are. */
export function amount(bytes: number | Count, unit: Unit): Amount {
  let v = Number(bytes) * (unit === "bits" ? 8 : 1);
  const names = prefixes[unit];
  const base = unit === "iec" ? 1024 : 1000;
  let i = 0;
  for (; v >= 999.5 && i < names.length - 1; i++) v /= base;
  return [three(v, i > 0), names[i]!];
}

function three(v: number, scaled: boolean): string {
  if (v === 0) return "0";
  if (v < 0.05) return "<0.1";
  if (!scaled) return v < 9.95 && !Number.isInteger(v) ? v.toFixed(1) : v.toFixed(0);
  return v < 9.995 ? v.toFixed(2) : v < 99.95 ? v.toFixed(1) : v.toFixed(0);
}

export function rate(bytes: number, unit: Unit): Amount {
  const [n, u] = amount(bytes, unit);
  return [n, `${u}/s`];
}

/** A number of things a second. */
export function perSecond(v: number): Amount {
  if (v < 999.5) return [three(v, false), "/s"];
  const [n, u] = amount(v, "si");
  return [n, `${u === "B" ? "" : u[0]}/s`];
}

export function text([number, unit]: Amount): string {
  return unit.startsWith("/") ? number + unit : `${number} ${unit}`;
}

export function percent(ratio: number): string {
  const p = ratio * 100;
  return `${p > 0 && p < 9.95 ? p.toFixed(1) : p.toFixed(0)} %`;
}

/** An amount of a quota in its own unit. */
export function used(v: number, unit: string, decimal: boolean): string {
  const speed = unit.endsWith("/s") ? "/s" : "";
  if (/^bytes/.test(unit)) return text(amount(v, decimal ? "si" : "iec")) + speed;
  const n = v < 1e6 ? String(Math.round(v * 10) / 10) : text(amount(v, "si")).replace(/B$/, "");
  return `${n} ${unit}`;
}

/** How long, in the two units that matter. */
export function duration(ms: number): string {
  const s = Math.max(0, Math.round(ms / 1000));
  const [d, h, m] = [Math.floor(s / 86400), Math.floor(s / 3600) % 24, Math.floor(s / 60) % 60];
  if (d > 0) return h > 0 ? `${d} d ${h} h` : `${d} d`;
  if (h > 0) return m > 0 ? `${h} h ${m} min` : `${h} h`;
  return m > 0 ? `${m} min ${s % 60} s` : `${s} s`;
}

const two = (n: number) => String(n).padStart(2, "0");

export function clock(t: Date): string {
  return `${two(t.getHours())}:${two(t.getMinutes())}:${two(t.getSeconds())}`;
}

export function day(t: Date): string {
  return `${t.getFullYear()}-${two(t.getMonth() + 1)}-${two(t.getDate())}`;
}

export function moment(text: string | null): string {
  if (!text) return "";
  const t = new Date(text);
  return `${day(t)} ${clock(t)}`;
}

const runes = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu;

/**
 * Text that a tenant chose, for one line: what can't be seen or would turn the line around is
 * shown as a replacement character.
 */
export function safe(text: string): string {
  return text.replace(runes, "\ufffd");
}
