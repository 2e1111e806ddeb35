/** From point to point by the keyboard, each near the one before. */

import { app } from "./app";
import type { Chart } from "./chart";

export class Walk {
  private trail: number[] = [];
  private at = -1;

  constructor(private readonly chart: Chart) {}

  /** Open the point nearest to the middle of the map. */
  start(): void {
    const { camera } = this.chart;
    this.trail = [];
    this.at = -1;
    this.go(this.chart.near(camera.x, camera.y, new Set()));
  }

  on(): void {
    this.follow();
    if (this.at < 0) return this.start();
    if (this.at < this.trail.length - 1) return this.open(this.at + 1);
    const point = this.trail[this.at];
    this.go(this.chart.near(this.chart.points.x[point], this.chart.points.y[point], new Set(this.trail)));
  }

  back(): void {
    this.follow();
    if (this.at > 0) this.open(this.at - 1);
  }

  /** Where another point was opened meanwhile, the walk starts there. */
  private follow(): void {
    const current = app.current.peek();
    const point = current === null ? -1 : this.chart.at(current);
    if (point < 0 || point === this.trail[this.at]) return;
    this.trail = [point];
    this.at = 0;
  }

  private go(point: number): void {
    if (point < 0) return;
    this.trail.push(point);
    this.open(this.trail.length - 1);
  }

  private open(at: number): void {
    this.at = at;
    app.current.value = this.chart.points.rows[this.trail[at]];
  }
}
