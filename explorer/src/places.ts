/** Which points are where: the nearest to a place, those in an area, the middle of a group. */

import type { Box } from "./camera";

export function boxOf(x: Float32Array, y: Float32Array): Box {
  const box = { left: Infinity, right: -Infinity, low: Infinity, high: -Infinity };
  for (let i = 0; i < x.length; i++) {
    if (x[i] < box.left) box.left = x[i];
    if (x[i] > box.right) box.right = x[i];
    if (y[i] < box.low) box.low = y[i];
    if (y[i] > box.high) box.high = y[i];
  }
  return x.length ? box : { left: -1, right: 1, low: -1, high: 1 };
}

/** A grid of cells with the points of each, so that few are looked at. */
export class Grid {
  private readonly side: number;
  private readonly starts: Uint32Array;
  private readonly items: Uint32Array;
  private readonly step: number;

  constructor(
    private readonly x: Float32Array,
    private readonly y: Float32Array,
    private readonly box: Box,
  ) {
    const n = x.length;
    this.side = Math.max(1, Math.min(512, Math.ceil(Math.sqrt(n / 3))));
    const extent = Math.max(box.right - box.left, box.high - box.low, 1e-6);
    this.step = (extent * 1.000001) / this.side;
    const cells = new Uint32Array(n);
    this.starts = new Uint32Array(this.side * this.side + 1);
    for (let i = 0; i < n; i++) {
      cells[i] = this.column(x[i]) + this.side * this.line(y[i]);
      this.starts[cells[i] + 1]++;
    }
    for (let c = 0; c < this.side * this.side; c++) this.starts[c + 1] += this.starts[c];
    const next = this.starts.slice();
    this.items = new Uint32Array(n);
    for (let i = 0; i < n; i++) this.items[next[cells[i]]++] = i;
  }

  private column(x: number): number {
    return Math.min(this.side - 1, Math.max(0, Math.floor((x - this.box.left) / this.step)));
  }

  private line(y: number): number {
    return Math.min(this.side - 1, Math.max(0, Math.floor((y - this.box.low) / this.step)));
  }

  /** The nearest point that `may` be taken, at most `reach` away; -1 where there is none. */
  nearest(x: number, y: number, reach: number, may: (point: number) => boolean): number {
    let found = -1;
    let least = reach * reach;
    const [from, to] = [this.column(x - reach), this.column(x + reach)];
    for (let line = this.line(y - reach); line <= this.line(y + reach); line++) {
      for (let at = this.starts[line * this.side + from]; at < this.starts[line * this.side + to + 1]; at++) {
        const point = this.items[at];
        const distance = (this.x[point] - x) ** 2 + (this.y[point] - y) ** 2;
        if (distance < least && may(point)) {
          found = point;
          least = distance;
        }
      }
    }
    return found;
  }

  /** The nearest point wherever it is; -1 where none may be taken. */
  anywhere(x: number, y: number, may: (point: number) => boolean): number {
    for (let reach = 2 * this.step; reach < 8; reach *= 2) {
      const found = this.nearest(x, y, reach, may);
      if (found >= 0) return found;
    }
    return -1;
  }
}

/** The pixels of an outline, to ask whether a place is within. */
export class Area {
  private readonly width: number;
  private readonly height: number;
  private readonly pixels: Uint8ClampedArray;

  constructor(outline: [number, number][], width: number, height: number) {
    this.width = Math.ceil(width);
    this.height = Math.ceil(height);
    const canvas = document.createElement("canvas");
    canvas.width = this.width;
    canvas.height = this.height;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    if (!context) throw new Error("no 2d canvas");
    context.beginPath();
    for (const [left, top] of outline) context.lineTo(left, top);
    context.closePath();
    context.fill();
    this.pixels = context.getImageData(0, 0, this.width, this.height).data;
  }

  holds(left: number, top: number): boolean {
    if (left < 0 || top < 0 || left >= this.width || top >= this.height) return false;
    return this.pixels[4 * (Math.floor(top) * this.width + Math.floor(left)) + 3] > 127;
  }
}

export interface Middle {
  code: number;
  x: number;
  y: number;
  count: number;
}

const LOOKED_AT = 600; // of each group: enough for a median that a name stands at

/** The median place of each code (a number from 0 on), those of more points first. */
export function middles(x: Float32Array, y: Float32Array, codes: Float32Array, skip: Uint8Array): Middle[] {
  const counts: number[] = [];
  for (let i = 0; i < x.length; i++) {
    if (!skip[i] && codes[i] >= 0) counts[codes[i]] = (counts[codes[i]] ?? 0) + 1;
  }
  const groups = counts.map((count) => ({ every: Math.ceil(count / LOOKED_AT), seen: 0, xs: [] as number[], ys: [] as number[] }));
  for (let i = 0; i < x.length; i++) {
    if (skip[i] || !(codes[i] >= 0)) continue;
    const group = groups[codes[i]];
    if (group.seen++ % group.every) continue;
    group.xs.push(x[i]);
    group.ys.push(y[i]);
  }
  const median = (values: number[]) => values.sort((a, b) => a - b)[values.length >> 1];
  const all: Middle[] = [];
  groups.forEach(({ xs, ys }, code) => all.push({ code, x: median(xs), y: median(ys), count: counts[code] }));
  return all.sort((a, b) => b.count - a.count);
}
