/** Rings around points that matter now, and the line that is being drawn. */

import { app } from "./app";
import { hovered, type Chart } from "./chart";
import { token } from "./theme";

const FIRST = 12; // rows of the list that are marked most
const LISTED = 300; // rows of the list that are marked
const PART = 0.2; // of all points: rings around most of them would say nothing

export class Marks {
  private readonly pen: CanvasRenderingContext2D | null;

  constructor(private readonly canvas: HTMLCanvasElement) {
    this.pen = canvas.getContext("2d");
  }

  draw(chart: Chart): void {
    const { pen, canvas } = this;
    if (!pen) return;
    const density = Math.min(2, window.devicePixelRatio || 1);
    const [width, height] = [Math.round(chart.camera.width * density), Math.round(chart.camera.height * density)];
    if (canvas.width !== width || canvas.height !== height) {
      canvas.width = width;
      canvas.height = height;
    }
    pen.setTransform(density, 0, 0, density, 0, 0);
    pen.clearRect(0, 0, chart.camera.width, chart.camera.height);
    const [mark, back] = [token("--map-mark"), token("--map-bg")];
    const radius = chart.size() / 2;
    const most = Math.max(FIRST, Math.min(LISTED, PART * chart.points.rows.length));
    const listed = app.list.peek()?.rows.slice(0, most) ?? [];
    pen.globalAlpha = 0.45;
    for (const row of listed.slice(FIRST)) this.ring(chart, chart.at(row), radius + 1.5, mark, "transparent", 1);
    pen.globalAlpha = 1;
    for (const row of listed.slice(0, FIRST)) this.ring(chart, chart.at(row), radius + 2, mark, back, 1.25);
    this.ring(chart, hovered.peek(), radius + 3, mark, back, 1.5);
    const current = app.current.peek();
    if (current !== null) this.current(chart, chart.at(current), radius);
    this.trace(chart);
  }

  private ring(chart: Chart, point: number, radius: number, mark: string, back: string, wide: number): void {
    const { pen } = this;
    if (!pen || point < 0) return;
    const [left, top] = chart.screen(point);
    for (const [colour, line] of [[back, wide + 2], [mark, wide]] as const) {
      pen.beginPath();
      pen.arc(left, top, radius, 0, 2 * Math.PI);
      pen.strokeStyle = colour;
      pen.lineWidth = line;
      pen.stroke();
    }
  }

  private current(chart: Chart, point: number, radius: number): void {
    this.ring(chart, point, radius + 4, token("--accent"), token("--map-bg"), 2.5);
    this.ring(chart, point, radius + 9, token("--accent"), "transparent", 1);
  }

  private trace(chart: Chart): void {
    const { pen } = this;
    if (!pen || chart.outline.length < 2) return;
    pen.beginPath();
    for (const [left, top] of chart.outline) pen.lineTo(left, top);
    pen.closePath();
    pen.strokeStyle = token("--accent");
    pen.lineWidth = 1.5;
    pen.setLineDash([5, 4]);
    pen.stroke();
    pen.setLineDash([]);
    pen.globalAlpha = 0.12;
    pen.fillStyle = token("--accent");
    pen.fill();
    pen.globalAlpha = 1;
  }
}
