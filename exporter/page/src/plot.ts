// SPDX-License-Identifier: Apache-2.0

import uPlot from "uplot";
import { text, rate, clock, type Unit } from "./format";

/** One layer of a stack: the rates of each point, received above the axis and transmitted below. */
export interface Layer {
  receive: Float32Array;
  transmit: Float32Array;
  colour: string;
  below?: string; // of what is transmitted, where that is another one
}

/** What a plot shows: the ends of its points in seconds of wall time, and the layers from the axis outwards. */
export interface Stack {
  times: Float64Array;
  layers: Layer[];
}

/** What the pointer or a brush has chosen. */
export interface Watcher {
  point(index: number | null): void;
  zoomed(is: boolean): void;
}

/**
 * A stacked plot over time that follows what is put into it. uPlot has the axes, the pointer and
 * the brush; the layers are drawn here, from each point's beginning to its end.
 */
export class Plot {
  private u: uPlot;
  private stack: Stack = { times: new Float64Array(), layers: [] };
  private zoom: [number, number] | null = null;
  private resize: ResizeObserver;

  constructor(
    private into: HTMLElement,
    private unit: Unit,
    private watcher: Watcher,
    private height = 220,
  ) {
    this.u = this.make();
    this.resize = new ResizeObserver(() => {
      if (into.clientWidth > 0 && into.clientWidth !== this.u.width) this.u.setSize(this.size());
    });
    this.resize.observe(into);
  }

  /** Shows other numbers, and goes on with time unless it is zoomed. */
  set(stack: Stack, unit: Unit): void {
    this.stack = stack;
    if (unit !== this.unit) {
      this.unit = unit;
      this.u.destroy();
      this.u = this.make();
    }
    const up = new Float64Array(stack.times.length);
    const down = new Float64Array(stack.times.length);
    for (const layer of stack.layers) {
      for (let i = 0; i < up.length; i++) {
        up[i]! += layer.receive[i]!;
        down[i]! -= layer.transmit[i]!;
      }
    }
    this.u.batch(() => {
      this.u.setData([stack.times, up, down] as unknown as uPlot.AlignedData, false);
      this.u.setScale("x", this.range());
    });
  }

  unzoom(): void {
    this.zoom = null;
    this.watcher.zoomed(false);
    this.u.setScale("x", this.range());
  }

  /** Draws it again, in other colours. */
  redraw(): void {
    this.u.destroy();
    this.u = this.make();
    this.set(this.stack, this.unit);
  }

  close(): void {
    this.resize.disconnect();
    this.u.destroy();
  }

  private range(): { min: number; max: number } {
    if (this.zoom) return { min: this.zoom[0], max: this.zoom[1] };
    const end = this.stack.times.at(-1) ?? Date.now() / 1000;
    return { min: end - 15 * 60, max: end };
  }

  private size() {
    return { width: Math.max(this.into.clientWidth, 100), height: this.height };
  }

  private make(): uPlot {
    const style = getComputedStyle(this.into);
    const ink = style.getPropertyValue("--faint").trim();
    const grid = { stroke: style.getPropertyValue("--line").trim(), width: 1 };
    const font = `11px ${style.fontFamily}`;
    const axis = { stroke: ink, grid, ticks: { show: false }, font };
    const none = { points: { show: false }, paths: () => null };
    return new uPlot(
      {
        ...this.size(),
        legend: { show: false },
        padding: [8, 20, 0, 0],
        cursor: { y: false, points: { show: false }, drag: { x: true, y: false, setScale: false } },
        select: { show: true, left: 0, top: 0, width: 0, height: 0 },
        scales: {
          x: { time: true },
          y: { range: (_u, min, max) => [Math.min(min ?? 0, 0) * 1.05, Math.max(max ?? 0, 64) * 1.05] },
        },
        axes: [
          { ...axis, values: (_u, splits) => splits.map((s) => clock(new Date(s * 1000)).replace(/:00$/, "")), space: 70, size: 28 },
          { ...axis, size: 78, values: (_u, splits) => splits.map((s) => text(rate(Math.abs(s), this.unit))), space: 34,
            splits: (_u, _axis, min, max) => ticks(min, max, this.unit) },
        ],
        series: [{}, none, none],
        hooks: {
          draw: [(u) => this.draw(u, ink)],
          setCursor: [(u) => this.watcher.point(u.cursor.idx ?? null)],
          setSelect: [(u) => this.brushed(u)],
          ready: [(u) => u.over.addEventListener("dblclick", () => this.unzoom())],
        },
      },
      [[], [], []],
      this.into,
    );
  }

  private brushed(u: uPlot): void {
    const { left, width } = u.select;
    if (width < 4) return;
    this.zoom = [u.posToVal(left, "x"), u.posToVal(left + width, "x")];
    u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    this.watcher.zoomed(true);
    u.setScale("x", this.range());
  }

  private draw(u: uPlot, ink: string): void {
    const { ctx, bbox } = u;
    const { times, layers } = this.stack;
    if (times.length < 2) return;
    const { min = 0, max = 0 } = u.scales["x"]!;
    let from = 1;
    while (from < times.length && times[from]! < min) from++;
    let to = from;
    while (to < times.length && times[to - 1]! < max) to++;
    const x = new Float64Array(to);
    for (let i = from - 1; i < to; i++) x[i] = u.valToPos(times[i]!, "x", true);
    const zero = u.valToPos(0, "y", true);
    const scale = zero - u.valToPos(1, "y", true); // pixels for a byte a second

    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    for (const [side, sign] of [["receive", -1], ["transmit", 1]] as const) {
      let inner = new Float64Array(to).fill(zero);
      for (const layer of layers) {
        const outer = new Float64Array(to);
        for (let i = from; i < to; i++) outer[i] = inner[i]! + sign * layer[side][i]! * scale;
        fill(ctx, x, inner, outer, from, to, (side === "transmit" && layer.below) || layer.colour);
        inner = outer;
      }
    }
    ctx.fillStyle = ink;
    ctx.fillRect(bbox.left, Math.round(zero), bbox.width, 1);
    ctx.restore();
  }
}

/** Fills between two edges, in steps; a point that is not known leaves a hole. */
function fill(
  ctx: CanvasRenderingContext2D, x: Float64Array, inner: Float64Array, outer: Float64Array, from: number, to: number, colour: string,
): void {
  ctx.beginPath();
  for (let i = from; i < to; ) {
    if (Number.isNaN(outer[i]!) || outer[i] === inner[i]) {
      i++;
      continue;
    }
    const first = i;
    ctx.moveTo(x[i - 1]!, inner[i]!);
    for (; i < to && !Number.isNaN(outer[i]!) && outer[i] !== inner[i]; i++) {
      ctx.lineTo(x[i - 1]!, outer[i]!);
      ctx.lineTo(x[i]!, outer[i]!);
    }
    for (let j = i - 1; j >= first; j--) {
      ctx.lineTo(x[j]!, inner[j]!);
      ctx.lineTo(x[j - 1]!, inner[j]!);
    }
    ctx.closePath();
  }
  ctx.fillStyle = colour;
  ctx.fill();
}

/** Round numbers of the unit, 0 among them. */
function ticks(min: number, max: number, unit: Unit): number[] {
  const factor = unit === "bits" ? 1 / 8 : 1;
  const base = unit === "iec" ? 1024 : 1000;
  const want = (max - min) / factor / 4;
  const scale = want <= 0 ? 1 : base ** Math.floor(Math.log(want) / Math.log(base));
  let step = scale;
  for (const m of [1, 2, 5, 10, 20, 50, 100, 200, 500, base]) {
    step = m * scale;
    if (step >= want) break;
  }
  const out: number[] = [];
  for (let v = Math.ceil(min / factor / step) * step; v <= max / factor; v += step) out.push(v * factor);
  return out;
}
