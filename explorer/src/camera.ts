/** Where the map is looked at: its centre in the points' coordinates, and pixels per unit. */

export interface Box {
  left: number;
  right: number;
  low: number;
  high: number;
}

const NEAREST = 400; // times the scale that fits

export class Camera {
  x = 0;
  y = 0;
  scale = 1;
  width = 1; // CSS pixels
  height = 1;
  private fitted: Box = { left: -1, right: 1, low: -1, high: 1 };

  resize(width: number, height: number): void {
    const before = this.scaleThatFits();
    const zoom = this.scale / before;
    this.width = Math.max(1, width);
    this.height = Math.max(1, height);
    this.scale = this.scaleThatFits() * zoom;
  }

  bounds(box: Box): void {
    const zoom = this.scale / this.scaleThatFits();
    this.fitted = box;
    this.scale = this.scaleThatFits() * zoom;
  }

  scaleThatFits(): number {
    const { left, right, low, high } = this.fitted;
    const margin = Math.min(36, 0.08 * Math.min(this.width, this.height));
    const across = (this.width - 2 * margin) / Math.max(right - left, 1e-3);
    const up = (this.height - 2 * margin) / Math.max(high - low, 1e-3);
    return Math.max(1e-3, Math.min(across, up));
  }

  get zoom(): number {
    return this.scale / this.scaleThatFits();
  }

  fit(): void {
    const { left, right, low, high } = this.fitted;
    this.x = (left + right) / 2;
    this.y = (low + high) / 2;
    this.scale = this.scaleThatFits();
  }

  toScreen(x: number, y: number): [number, number] {
    return [(x - this.x) * this.scale + this.width / 2, this.height / 2 - (y - this.y) * this.scale];
  }

  toData(left: number, top: number): [number, number] {
    return [(left - this.width / 2) / this.scale + this.x, (this.height / 2 - top) / this.scale + this.y];
  }

  /** Zoom so that what is under (left, top) stays there. */
  zoomAt(left: number, top: number, factor: number): void {
    const [x, y] = this.toData(left, top);
    const fits = this.scaleThatFits();
    this.scale = Math.min(NEAREST * fits, Math.max(0.4 * fits, this.scale * factor));
    this.x = x - (left - this.width / 2) / this.scale;
    this.y = y - (this.height / 2 - top) / this.scale;
    this.hold();
  }

  pan(across: number, down: number): void {
    this.x -= across / this.scale;
    this.y += down / this.scale;
    this.hold();
  }

  /** Bring a place into sight, where it is not. */
  show(x: number, y: number): boolean {
    const [left, top] = this.toScreen(x, y);
    const margin = 6;
    const seen = left > margin && left < this.width - margin && top > margin && top < this.height - margin;
    if (!seen) {
      this.x = x;
      this.y = y;
    }
    return !seen;
  }

  /** Some of the map stays in sight. */
  private hold(): void {
    const { left, right, low, high } = this.fitted;
    this.x = Math.min(right, Math.max(left, this.x));
    this.y = Math.min(high, Math.max(low, this.y));
  }
}
