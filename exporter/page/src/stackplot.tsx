// SPDX-License-Identifier: Apache-2.0

import { h } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { Plot, type Layer } from "./plot";
import { useTick } from "./shared";
import { clock, rate, text, type Unit } from "./format";
import { link } from "./address";
import { safe } from "./format";
import type { Model, Row, Track } from "./model";

const shown = 8; // containers with a colour of their own
const reorder = 10_000; // ms between choices of those

/** Those that have moved most lately, each in the colour that it keeps while it is among them. */
class Leaders {
  private colours = new Map<string, number>();
  private chosenAt = 0;
  private fills = 0; // of the model, when they were chosen
  list: { row: Row; colour: number }[] = [];

  choose(model: Model): void {
    const now = performance.now();
    const gone = this.list.some(({ row }) => model.rows.get(row.is.id) !== row);
    if (!gone && this.list.length > 0 && this.fills === model.fills && now - this.chosenAt < reorder) return;
    if (this.fills === 0 && model.fills > 0) this.colours.clear(); // it was a guess, by some seconds
    [this.chosenAt, this.fills] = [now, model.fills];
    const sums: [number, Row][] = [];
    for (const row of model.rows.values()) {
      if (!row.track || model.isPart(row)) continue;
      let sum = 0;
      for (let i = model.begin; i < model.points; i++) sum += (row.track.receive[i]! || 0) + (row.track.transmit[i]! || 0);
      if (sum > 0) sums.push([sum, row]);
    }
    const top = sums.sort((a, b) => b[0] - a[0]).slice(0, shown);
    const ids = new Set(top.map(([, row]) => row.is.id));
    for (const id of this.colours.keys()) if (!ids.has(id)) this.colours.delete(id);
    const free = Array.from({ length: shown }, (_, i) => i).filter((i) => ![...this.colours.values()].includes(i));
    this.list = top.map(([, row]) => {
      const colour = this.colours.get(row.is.id) ?? free.shift()!;
      this.colours.set(row.is.id, colour);
      return { row, colour };
    });
  }
}

function layersOf(model: Model, leaders: Leaders, colours: string[]): Layer[] {
  const { begin, points } = model;
  const cut = (t: Track) => ({ receive: t.receive.subarray(begin, points), transmit: t.transmit.subarray(begin, points) });
  const rest = { receive: model.receive.slice(begin, points), transmit: model.transmit.slice(begin, points) };
  const layers = leaders.list.map(({ row, colour }) => {
    const own = cut(row.track!);
    for (const side of ["receive", "transmit"] as const) {
      // A leader that became part of another is in no sum.
      for (let i = 0; i < rest[side].length; i++) rest[side][i] = Math.max(0, rest[side][i]! - own[side][i]!);
    }
    return { ...own, colour: colours[colour]! };
  });
  return [...layers, { ...rest, colour: colours[shown]! }];
}

/** Rates are sums of singles: what is left of a subtraction below this is rounding. */
const least = 0.5;

/** The host over the last fifteen minutes, by container. of shows one container alone. */
export function StackPlot({ unit, of }: { unit: Unit; of?: Row | undefined }) {
  const model = useTick();
  const into = useRef<HTMLDivElement>(null);
  const plot = useRef<Plot | null>(null);
  const colours = useRef<string[]>([]);
  const leaders = useRef(new Leaders()).current;
  const [at, setAt] = useState<number | null>(null);
  const [zoomed, setZoomed] = useState(false);

  const theme = () => {
    const style = getComputedStyle(into.current!);
    const names = [...Array.from({ length: shown + 1 }, (_, i) => `--plot-${i}`), "--receive", "--transmit"];
    colours.current = names.map((name) => style.getPropertyValue(name).trim());
  };
  useEffect(() => {
    theme();
    plot.current = new Plot(into.current!, unit, { point: setAt, zoomed: setZoomed }, of ? 180 : 220);
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const changed = () => (theme(), plot.current!.redraw());
    dark.addEventListener("change", changed);
    return () => (dark.removeEventListener("change", changed), plot.current!.close());
  }, []);

  const { begin, points } = model;
  if (!of) leaders.choose(model);
  let layers: Layer[] = [];
  if (plot.current || colours.current.length > 0) {
    if (!of) layers = layersOf(model, leaders, colours.current);
    else if (of.track) layers = [{ receive: of.track.receive.subarray(begin, points), transmit: of.track.transmit.subarray(begin, points), colour: colours.current[shown + 1]!, below: colours.current[shown + 2]! }];
  }
  useEffect(() => {
    const times = model.times.slice(begin, points);
    const { offset } = model;
    for (let i = 0; i < times.length; i++) times[i] = (times[i]! + offset) / 1000;
    plot.current!.set({ times, layers }, unit);
  });

  const index = at !== null && at < points - begin ? at : points - begin - 1;
  const value = (t: Float32Array) => text(rate(t[index]! >= least ? t[index]! : 0, unit));
  const names = of ? [] : [...leaders.list.map(({ row, colour }) => ({ key: row.is.id, row, colour })), { key: "", row: null, colour: shown }];
  const time = points > 0 ? clock(new Date(model.times[begin + Math.max(index, 0)]! + model.offset)) : "";
  return (
    <figure class="plot">
      <figcaption>
        <span>{of ? "Its" : "The host's"} last 15 minutes: received above the line, transmitted below</span>
        <span class="when">{at !== null && index === at ? `at ${time}` : "now"}</span>
        {zoomed ? <button type="button" onClick={() => plot.current!.unzoom()}>Show all</button> : <span class="hint">drag to zoom</span>}
      </figcaption>
      <div class="canvas" ref={into} role="img" aria-label={of ? "Plot of its rates; the numbers are below" : "Stacked plot of the rates by container; the numbers are in the list below"} />
      {!of && (
        <ul class="legend">
          {names.map(({ key, row, colour }, i) => (
            <li key={key}>
              <span class={`swatch c${colour}`} aria-hidden="true" />
              {row ? <a class="name" href={link("container", row.is.id)} title={safe(row.is.name)}><bdi>{safe(row.is.name || row.is.id.slice(0, 12))}</bdi></a> : <span class="name">others</span>}
              {index >= 0 && layers[i] && <span class="values"><span>{value(layers[i]!.receive)}</span><span>{value(layers[i]!.transmit)}</span></span>}
            </li>
          ))}
        </ul>
      )}
    </figure>
  );
}
