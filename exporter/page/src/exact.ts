// SPDX-License-Identifier: Apache-2.0

// Counters reach 2^64, and a JavaScript number holds integers to 2^53 only.

/** An exact counter: a number while it is safe, else a BigInt. */
export type Count = number | bigint;

const long = /\d{16}/;
const token = /"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;

/**
 * Parses JSON whose integers beyond 2^53 become strings of their digits, which [count] turns
 * into a BigInt. Text in strings is left alone.
 */
export function parse(text: string): unknown {
  return JSON.parse(long.test(text) ? text.replace(token, quoted) : text);
}

function quoted(t: string): string {
  return t.length >= 16 && /^-?\d+$/.test(t) && !Number.isSafeInteger(Number(t)) ? `"${t}"` : t;
}

/** The counter that parse has left as v, and 0 for one that is not there. */
export function count(v: unknown): Count {
  if (typeof v === "number" || typeof v === "bigint") return v;
  return typeof v === "string" && /^-?\d+$/.test(v) ? fit(BigInt(v)) : 0;
}

function fit(v: bigint): Count {
  const n = Number(v);
  return Number.isSafeInteger(n) ? n : v;
}

export function plus(a: Count, b: Count): Count {
  if (typeof a === "number" && typeof b === "number") {
    const sum = a + b;
    if (Number.isSafeInteger(sum)) return sum;
  }
  return fit(BigInt(a) + BigInt(b));
}

/** The difference as a number: exact up to 2^53, which is far more than passes in a step. */
export function minus(a: Count, b: Count): number {
  return typeof a === "number" && typeof b === "number" ? a - b : Number(BigInt(a) - BigInt(b));
}

/** Orders two counters. */
export function compare(a: Count, b: Count): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

/** All digits. */
export function digits(v: Count): string {
  return v.toString();
}
