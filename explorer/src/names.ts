/** Names on the map at the middles of their groups; those of larger groups first, none over another, nor over what lies on the map. */

import type { Chart } from "./chart";

const MOST = 60;
const FEW = 1000; // points
const LONGEST = 150; // pixels, as in style.css
const HIGH = 20;
const BESIDE = 26; // pixels around the text

interface Placed {
  left: number;
  top: number;
  wide: number;
  high: number;
}

/** What lies over the map and has to stay readable. */
function covered(holder: HTMLElement): Placed[] {
  const over = holder.parentElement?.querySelectorAll<HTMLElement>(".map-caption, .map-tools") ?? [];
  return [...over].map((one) => ({ left: one.offsetLeft, top: one.offsetTop, wide: one.offsetWidth, high: one.offsetHeight }));
}

export class Names {
  private readonly widths = new Map<string, number>();
  private readonly shown = new Map<number, HTMLElement>();
  private readonly pen = document.createElement("canvas").getContext("2d");

  constructor(private readonly holder: HTMLElement) {}

  private width(text: string): number {
    let known = this.widths.get(text);
    if (known === undefined) {
      if (this.pen) this.pen.font = `600 12px ${getComputedStyle(this.holder).fontFamily}`;
      known = Math.min(LONGEST, (this.pen?.measureText(text).width ?? 7 * text.length) + BESIDE);
      this.widths.set(text, known);
    }
    return known;
  }

  /** Put the names where the camera has their groups now. */
  draw(chart: Chart, name: (code: number) => string | undefined, colour: (code: number) => string): void {
    const placed = covered(this.holder);
    const lift = chart.points.rows.length < FEW ? HIGH / 2 + chart.size() : 0; // not over the few points there are
    const used = new Set<number>();
    for (const middle of chart.names) {
      if (used.size >= MOST) break;
      const text = name(middle.code);
      if (!text) continue;
      const wide = this.width(text);
      const [x, y] = chart.camera.toScreen(middle.x, middle.y);
      const [left, top] = [x - wide / 2, y - HIGH / 2 - lift];
      if (left < 0 || top < 0 || left + wide > chart.camera.width || top + HIGH > chart.camera.height) continue;
      if (placed.some((p) => left < p.left + p.wide + 4 && left + wide + 4 > p.left && top < p.top + p.high + 2 && top + HIGH + 2 > p.top)) continue;
      placed.push({ left, top, wide, high: HIGH });
      used.add(middle.code);
      this.put(middle.code, text, colour(middle.code), left, top);
    }
    for (const [code, element] of this.shown) {
      if (used.has(code)) continue;
      element.remove();
      this.shown.delete(code);
    }
  }

  private put(code: number, text: string, colour: string, left: number, top: number): void {
    let element = this.shown.get(code);
    if (!element) {
      element = document.createElement("span");
      element.dataset.testid = "cluster-name";
      this.shown.set(code, element);
      this.holder.append(element);
    }
    if (element.textContent !== text) element.textContent = text;
    element.style.setProperty("--dot", colour);
    element.style.transform = `translate(${Math.round(left)}px, ${Math.round(top)}px)`;
  }
}
