/** What pointers do on the map: move it, draw on it, choose a point. */

import { app } from "./app";
import { drawing, hovered, type Chart, type Outline } from "./chart";

const CLICK = 4; // pixels that a pointer may move within a click
const FINGER = 14;

type Drag = { kind: "pan" | "pinch" | "lasso" | "box"; left: number; top: number; far: boolean; apart: number };

/** Take rows into the selection: alone, with those there were, or out of them. */
export function select(rows: Uint32Array, how: "only" | "more" | "less"): void {
  if (how === "only") {
    app.selected.value = rows;
    return;
  }
  const kept = new Set(app.selected.peek());
  for (const row of rows) how === "more" ? kept.add(row) : kept.delete(row);
  app.selected.value = Uint32Array.from(kept);
}

export class Gestures {
  private readonly pointers = new Map<number, [number, number]>();
  private drag: Drag | null = null;

  constructor(
    private readonly canvas: HTMLCanvasElement,
    private readonly chart: Chart,
  ) {
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    canvas.addEventListener("pointerup", (event) => this.up(event));
    canvas.addEventListener("pointercancel", () => this.stop());
    canvas.addEventListener("pointerleave", () => (hovered.value = -1));
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
  }

  private place(event: MouseEvent): [number, number] {
    const box = this.canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  private down(event: PointerEvent): void {
    if (event.button > 0) return;
    this.canvas.setPointerCapture(event.pointerId);
    const [left, top] = this.place(event);
    this.pointers.set(event.pointerId, [left, top]);
    hovered.value = -1;
    if (this.pointers.size === 2) {
      this.chart.outline = [];
      this.drag = { kind: "pinch", ...this.pinch(), far: true };
      return;
    }
    const kind = drawing.peek() === "none" ? "pan" : (drawing.peek() as "lasso" | "box");
    this.drag = { kind, left, top, far: false, apart: 0 };
    if (kind !== "pan") this.chart.outline = [[left, top]];
  }

  private pinch(): { left: number; top: number; apart: number } {
    const [[ax, ay], [bx, by]] = [...this.pointers.values()];
    return { left: (ax + bx) / 2, top: (ay + by) / 2, apart: Math.hypot(ax - bx, ay - by) };
  }

  private move(event: PointerEvent): void {
    const [left, top] = this.place(event);
    const { drag } = this;
    if (!drag) {
      hovered.value = event.pointerType === "touch" || drawing.peek() !== "none" ? -1 : this.chart.under(left, top, 5);
      return;
    }
    if (!this.pointers.has(event.pointerId)) return;
    this.pointers.set(event.pointerId, [left, top]);
    drag.far ||= Math.hypot(left - drag.left, top - drag.top) > CLICK;
    if (drag.kind === "pinch") this.stretch(drag);
    else if (drag.kind === "pan") this.pan(drag, left, top);
    else this.trace(drag, left, top);
  }

  private stretch(drag: Drag): void {
    const now = this.pinch();
    this.chart.camera.pan(now.left - drag.left, now.top - drag.top);
    this.chart.camera.zoomAt(now.left, now.top, now.apart / Math.max(1, drag.apart));
    Object.assign(drag, now);
    this.chart.move();
  }

  private pan(drag: Drag, left: number, top: number): void {
    if (!drag.far) return;
    this.canvas.dataset.moves = "";
    this.chart.camera.pan(left - drag.left, top - drag.top);
    drag.left = left;
    drag.top = top;
    this.chart.move();
  }

  private trace(drag: Drag, left: number, top: number): void {
    const { chart } = this;
    if (drag.kind === "box") {
      chart.outline = [[drag.left, drag.top], [left, drag.top], [left, top], [drag.left, top]];
    } else {
      const [x, y] = chart.outline[chart.outline.length - 1];
      if (Math.hypot(left - x, top - y) >= 2) chart.outline.push([left, top]);
    }
    chart.redraw();
  }

  private up(event: PointerEvent): void {
    const { drag } = this;
    const known = this.pointers.delete(event.pointerId);
    if (!drag || !known) return;
    if (drag.kind === "pinch") {
      if (this.pointers.size === 0) this.stop();
      return;
    }
    const outline: Outline = this.chart.outline;
    this.stop();
    if (drag.kind === "pan") {
      if (!drag.far) this.choose(event);
    } else if (drag.far && outline.length > 2) {
      select(this.chart.within(outline), event.shiftKey ? "more" : event.altKey ? "less" : "only");
      drawing.value = "none";
    }
  }

  private choose(event: PointerEvent): void {
    const [left, top] = this.place(event);
    const point = this.chart.under(left, top, event.pointerType === "touch" ? FINGER : 5);
    if (point < 0) return;
    const row = this.chart.points.rows[point];
    if (event.shiftKey || event.ctrlKey || event.metaKey) {
      select(Uint32Array.of(row), app.selected.peek().includes(row) ? "less" : "more");
    } else app.current.value = row;
  }

  stop(): void {
    this.pointers.clear();
    this.drag = null;
    this.chart.outline = [];
    delete this.canvas.dataset.moves;
    this.chart.redraw();
  }

  private wheel(event: WheelEvent): void {
    event.preventDefault();
    const [left, top] = this.place(event);
    const pixels = event.deltaY * [1, 16, this.chart.camera.height][event.deltaMode];
    this.chart.camera.zoomAt(left, top, Math.exp(-Math.max(-300, Math.min(300, pixels)) / 350));
    hovered.value = -1;
    this.chart.move();
  }
}
