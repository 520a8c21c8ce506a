// SPDX-License-Identifier: Apache-2.0

import { h, Fragment, createContext, type ComponentChildren } from "preact";
import { useContext, useEffect, useLayoutEffect, useReducer, useRef, useState } from "preact/hooks";
import { APIError, get } from "./api";
import type { Model, Row } from "./model";
import { safe, type Amount } from "./format";
import { link } from "./address";

export const Host = createContext<Model>(null as unknown as Model);
export const useModel = (): Model => useContext(Host);

/** Draws a component again when the host's numbers have changed, at most once a frame. */
export function useTick(): Model {
  const model = useModel();
  const [, again] = useReducer((n: number) => n + 1, 0);
  useEffect(() => {
    let frame = 0;
    const stop = model.subscribe(() => {
      if (frame === 0) frame = requestAnimationFrame(() => ((frame = 0), again(null as never)));
    });
    return () => (stop(), cancelAnimationFrame(frame));
  }, [model]);
  return model;
}

export interface Fetched<T> {
  body: T | null;
  error: string;
  status: number;
  again(): void;
}

/** Fetches a path, and again every so many ms while the tab is looked at (0: never). */
export function useFetch<T>(path: string, every = 0, load: (path: string, signal: AbortSignal) => Promise<T> = get): Fetched<T> {
  const [state, set] = useState<{ path: string; body: T | null; error: string; status: number }>({ path, body: null, error: "", status: 0 });
  const [turn, again] = useReducer((n: number) => n + 1, 0);
  useEffect(() => {
    if (path === "") return;
    const stop = new AbortController();
    load(path, stop.signal).then(
      (body) => stop.signal.aborted || set({ path, body, error: "", status: 200 }),
      (err) => stop.signal.aborted ||
        set((was) => ({ path, body: was.path === path ? was.body : null, error: String(err.message ?? err), status: err instanceof APIError ? err.status : 0 })),
    );
    return () => stop.abort();
  }, [path, turn]);
  useEffect(() => {
    if (every === 0) return;
    const timer = setInterval(() => document.visibilityState === "visible" && again(null as never), every);
    return () => clearInterval(timer);
  }, [every]);
  const mine = state.path === path;
  return { body: mine ? state.body : null, error: mine ? state.error : "", status: mine ? state.status : 0, again: () => again(null as never) };
}

/** An amount, its number and unit apart so that digits stand below each other. */
export function Figure({ of, quiet }: { of: Amount | null; quiet?: boolean }) {
  if (of === null) return <span class="none" title="not known">–</span>;
  const zero = of[0] === "0";
  return <span class={quiet || zero ? "figure quiet" : "figure"}>{of[0]}<span class="unit"> {of[1]}</span></span>;
}

/** A text that a tenant chose. */
export function Text({ children }: { children: string }) {
  return <bdi>{safe(children)}</bdi>;
}

export function ContainerLink({ row }: { row: Row }) {
  const name = safe(row.is.name || row.is.id.slice(0, 12));
  return <a class="name" href={link("container", row.is.id)} title={name}><bdi>{name}</bdi></a>;
}

export function Problem({ of }: { of: Fetched<unknown> }) {
  if (of.error === "") return null;
  return <p class="problem" role="alert">{safe(of.error)}</p>;
}

/** Where what is shown comes from. */
export function Source({ of }: { of: string[] }) {
  return <p class="source">From {of.map((path, i) => <Fragment key={path}>{i > 0 && ", "}<a href={path}><code>{"/" + decode(path)}</code></a></Fragment>)}</p>;
}

function decode(path: string): string {
  try {
    return safe(decodeURIComponent(path.replace(/\+/g, " ")));
  } catch {
    return path;
  }
}

export function Section({ title, children, aside }: { title: string; children: ComponentChildren; aside?: ComponentChildren }) {
  return <section><div class="head"><h2>{title}</h2>{aside}</div>{children}</section>;
}

/** What may be wider than the screen scrolls by itself, also by keys where it does. */
export function Scroll({ label, children, kind = "" }: { label: string; children: ComponentChildren; kind?: string }) {
  const box = useRef<HTMLDivElement>(null);
  useLayoutEffect(() => {
    const e = box.current!;
    const measure = () => (e.scrollWidth > e.clientWidth ? (e.tabIndex = 0) : e.removeAttribute("tabindex"));
    const resized = new ResizeObserver(measure);
    for (const each of [e, ...e.children]) resized.observe(each);
    measure();
    return () => resized.disconnect();
  }, []);
  return <div class={`scroll ${kind}`} ref={box} role="group" aria-label={label}>{children}</div>;
}

/** A bar of a share, for the eye alone: the number stands beside it. */
export function Bar({ share, split, kind }: { share: number; split?: number; kind?: string }) {
  const width = (v: number) => `${Math.max(0, Math.min(1, v)) * 100}%`;
  return (
    <span class={`bar ${kind ?? ""}`} aria-hidden="true">
      <span class="receive" style={{ width: width(split === undefined ? share : share * split) }} />
      {split !== undefined && <span class="transmit" style={{ width: width(share * (1 - split)) }} />}
    </span>
  );
}

export function Choice({ label, value, of, set }: { label: string; value: string; of: Record<string, string>; set(value: string): void }) {
  return (
    <label class="choice"><span>{label}</span>
      <select value={value} onChange={(e) => set(e.currentTarget.value)}>
        {Object.entries(of).map(([v, title]) => <option key={v} value={v}>{title}</option>)}
      </select>
    </label>
  );
}

/** A field whose text is taken over once its writer pauses. */
export function Field({ label, value, set, hint, id }: { label: string; value: string; set(value: string): void; hint?: string; id?: string }) {
  const [now, write] = useState(value);
  const timer = useRef<ReturnType<typeof setTimeout> | undefined>(undefined);
  useEffect(() => write(value), [value]);
  return (
    <label class="choice field"><span>{label}</span>
      <input id={id} type="search" value={now} placeholder={hint} spellcheck={false} autocomplete="off"
        onInput={(e) => {
          const next = e.currentTarget.value;
          write(next);
          clearTimeout(timer.current);
          timer.current = setTimeout(() => set(next), 120);
        }} />
    </label>
  );
}
