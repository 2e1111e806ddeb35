/** The map: its camera, what is drawn, and which point is where. */

import { effect, signal } from "@preact/signals";
import { app, type Points } from "./app";
import { Camera, type Box } from "./camera";
import { colouring, filtering, painter, shows, type Colouring } from "./colours";
import type { Rgb } from "./palette";
import { Area, boxOf, Grid, middles, type Middle } from "./places";
import { Scene, type Layer } from "./scene";
import { calm, tokenRgb } from "./theme";

const SMOOTH = 45; // ms that a frame may take while the map moves, before fewer points are drawn
const SETTLES = 180; // ms after the last move, until all points are drawn
const DIMMED = 0;
const SHOWN = 1;
const SELECTED = 2;

export type Outline = [number, number][];

/** The point under the pointer, as its place in `app.points`; -1: none. */
export const hovered = signal(-1);
/** Counts drawn frames. */
export const frames = signal(0);
/** How the pointer draws on the map. */
export const drawing = signal<"none" | "lasso" | "box">("none");
/** Whether the browser can draw the map. */
export const canDraw = signal(true);

/** Numbers from 0 to n - 1 in an order that is always the same and has no pattern. */
function shuffled(n: number): Uint32Array<ArrayBuffer> {
  const order = Uint32Array.from({ length: n }, (_, i) => i);
  let state = 0x9e3779b9;
  for (let i = n - 1; i > 0; i--) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    const j = (state >>> 0) % (i + 1);
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}

export class Chart {
  readonly camera = new Camera();
  points: Points = { rows: new Uint32Array(0), x: new Float32Array(0), y: new Float32Array(0) };
  names: Middle[] = [];
  outline: Outline = [];

  private scene: Scene | null;
  private box: Box = boxOf(this.points.x, this.points.y);
  private grid: Grid | null = null;
  private places = new Int32Array(0); // of a row in `points`; -1: not drawn
  private random: Uint32Array = new Uint32Array(0);
  private kinds = new Uint8Array(0);
  private counts: [number, number, number] = [0, 0, 0];
  private background: Rgb = [255, 255, 255];
  private wanted = 0;
  private moved = 0;
  private settling = 0;
  private cost = 0; // ms of a frame with all points
  private density = 1;
  private moving = 0;
  private readonly endings: (() => void)[] = [];

  constructor(
    private readonly canvas: HTMLCanvasElement,
    private readonly drawn: () => void,
  ) {
    this.scene = Scene.on(canvas);
    canDraw.value = this.scene !== null;
    canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
    canvas.addEventListener("webglcontextrestored", () => this.restore());
    const watch = new ResizeObserver(() => this.resize());
    watch.observe(canvas);
    this.endings.push(
      () => watch.disconnect(),
      effect(() => this.place(app.points.value)),
      effect(() => this.paint(app.points.value, colouring.value)),
    );
  }

  end(): void {
    cancelAnimationFrame(this.wanted);
    cancelAnimationFrame(this.moving);
    clearTimeout(this.settling);
    for (const ending of this.endings) ending();
  }

  private restore(): void {
    this.scene = Scene.on(this.canvas);
    this.scene?.setPlaces(this.points.x, this.points.y);
    this.paint(app.points.peek(), colouring.peek());
  }

  private resize(): void {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!width || !height) return;
    this.density = Math.min(2, window.devicePixelRatio || 1);
    this.canvas.width = Math.round(width * this.density);
    this.canvas.height = Math.round(height * this.density);
    this.camera.resize(width, height);
    this.draw(); // at once: a canvas of a new size is empty
  }

  private place(points: Points | null): void {
    if (!points || points === this.points) return;
    const first = this.points.rows.length === 0;
    this.points = points;
    this.box = boxOf(points.x, points.y);
    this.grid = null;
    this.random = shuffled(points.rows.length);
    this.places = new Int32Array(points.rows.reduce((most, row) => Math.max(most, row + 1), 0)).fill(-1);
    points.rows.forEach((row, i) => (this.places[row] = i));
    this.camera.bounds(this.box);
    if (first) this.camera.fit();
    this.scene?.setPlaces(points.x, points.y);
    this.cost = 0;
    hovered.value = -1;
  }

  private paint(points: Points | null, colours: Colouring | null): void {
    const theme = app.theme.value;
    const selected = app.selected.value;
    this.background = tokenRgb("--map-bg");
    if (!points) return;
    const n = points.rows.length;
    const fits = colours !== null && colours.values.length === n;
    const none = tokenRgb("--map-none");
    const colour = fits ? painter(colours.legend, none) : () => (theme === "dark" ? [122, 176, 190] : [74, 124, 140]) as Rgb;
    this.sort(points, fits && filtering.value ? colours : null, selected);
    const paint = new Uint8Array(4 * n);
    for (let i = 0; i < n; i++) {
      const one = this.kinds[i] === DIMMED ? none : colour(fits ? colours.values[i] : 0);
      paint[4 * i] = one[0];
      paint[4 * i + 1] = one[1];
      paint[4 * i + 2] = one[2];
      paint[4 * i + 3] = 255;
    }
    this.scene?.setPaint(paint, this.order());
    const named = fits && colours.legend.kind === "category";
    this.names = named ? middles(points.x, points.y, colours.values, (i) => this.kinds[i] === DIMMED) : [];
    this.names.sort((a, b) => b.count - a.count);
    this.redraw();
  }

  /** Which points are left out by the legend, shown, or selected. */
  private sort(points: Points, colours: Colouring | null, selected: Uint32Array): void {
    this.kinds = new Uint8Array(points.rows.length).fill(SHOWN);
    if (colours) {
      for (let i = 0; i < this.kinds.length; i++) {
        if (!shows(colours.legend, colours.values[i])) this.kinds[i] = DIMMED;
      }
    }
    for (const row of selected) {
      const at = this.at(row);
      if (at >= 0) this.kinds[at] = SELECTED;
    }
    this.counts = [0, 0, 0];
    for (const kind of this.kinds) this.counts[kind]++;
  }

  /** Points in the order they are drawn: dimmed, shown, selected; each without a pattern. */
  private order(): Uint32Array {
    const order = new Uint32Array(this.random.length);
    const next = [0, this.counts[0], this.counts[0] + this.counts[1]];
    for (const point of this.random) order[next[this.kinds[point]]++] = point;
    return order;
  }

  /** Draw with the next frame of the screen. */
  redraw(): void {
    if (!this.wanted) this.wanted = requestAnimationFrame(() => this.draw());
  }

  /** The camera has moved. */
  move(): void {
    this.moved = performance.now();
    clearTimeout(this.settling);
    this.settling = window.setTimeout(() => this.redraw(), SETTLES);
    this.redraw();
  }

  private draw(): void {
    cancelAnimationFrame(this.wanted);
    this.wanted = 0;
    const started = performance.now();
    const moves = started - this.moved < SETTLES - 20;
    const share = moves && this.cost > SMOOTH ? Math.max(0.04, SMOOTH / this.cost) : 1;
    this.scene?.draw(this.camera, this.density, this.background, this.layers(), share);
    if (share === 1 && this.cost === 0 && this.points.rows.length > 100_000) {
      this.scene?.finish();
      this.cost = performance.now() - started;
    }
    this.drawn();
    frames.value++;
  }

  private layers(): Layer[] {
    const size = this.size();
    const some = this.counts[SELECTED] > 0;
    const rim = { rim: this.background, rimWidth: size >= 5 ? 0.7 : 0 };
    const opacity = this.points.rows.length > 20_000 ? 0.75 : 0.9;
    return [
      { count: this.counts[DIMMED], size: 0.8 * size, opacity: 0.28, ...rim },
      { count: this.counts[SHOWN], size, opacity: some ? 0.4 * opacity : opacity, ...rim },
      { count: this.counts[SELECTED], size: 1.25 * size + 1, opacity: 1, rim: tokenRgb("--map-mark"), rimWidth: size >= 3 ? 0.9 : 0 },
    ];
  }

  /** Pixels across a point: fewer where there are more points, more where one looks closer. */
  size(): number {
    const n = Math.max(this.points.rows.length, 10);
    const base = Math.min(11, Math.max(1.3, 13 - 2 * Math.log10(n)));
    const room = Math.min(1, Math.max(0.6, Math.min(this.camera.width, this.camera.height) / 460));
    return Math.min(16, base * room * Math.min(4, Math.max(0.9, this.camera.zoom ** 0.4)));
  }

  /** Whether a point may be taken: the legend leaves it in. */
  private readonly may = (point: number): boolean => this.kinds[point] !== DIMMED;

  private cells(): Grid {
    this.grid ??= new Grid(this.points.x, this.points.y, this.box);
    return this.grid;
  }

  /** The place in `points` of a row; -1 where it is not drawn. */
  at(row: number): number {
    return this.places[row] ?? -1;
  }

  screen(point: number): [number, number] {
    return this.camera.toScreen(this.points.x[point], this.points.y[point]);
  }

  /** The point at a place on the canvas; -1: none. */
  under(left: number, top: number, reach: number): number {
    if (!this.points.rows.length) return -1;
    const [x, y] = this.camera.toData(left, top);
    return this.cells().nearest(x, y, (this.size() / 2 + reach) / this.camera.scale, this.may);
  }

  /** The nearest point to a place of the map, other than those that are known. */
  near(x: number, y: number, known: ReadonlySet<number>): number {
    if (!this.points.rows.length) return -1;
    return this.cells().anywhere(x, y, (point) => this.may(point) && !known.has(point));
  }

  /** Rows within an outline on the canvas. */
  within(outline: Outline): Uint32Array {
    const { camera, points } = this;
    const area = new Area(outline, camera.width, camera.height);
    const found: number[] = [];
    for (let i = 0; i < points.rows.length; i++) {
      const left = (points.x[i] - camera.x) * camera.scale + camera.width / 2;
      const top = camera.height / 2 - (points.y[i] - camera.y) * camera.scale;
      if (this.may(i) && area.holds(left, top)) found.push(points.rows[i]);
    }
    return Uint32Array.from(found);
  }

  shownRows(): Uint32Array {
    return this.points.rows.filter((_, i) => this.may(i));
  }

  /** Move the camera there, in a moment. */
  glide(change: (camera: Camera) => void): void {
    const from = { x: this.camera.x, y: this.camera.y, scale: this.camera.scale };
    change(this.camera);
    const to = { x: this.camera.x, y: this.camera.y, scale: this.camera.scale };
    cancelAnimationFrame(this.moving);
    if (calm()) return this.move();
    const started = performance.now();
    const step = () => {
      const past = Math.min(1, (performance.now() - started) / 200);
      const eased = 1 - (1 - past) ** 3;
      this.camera.x = from.x + (to.x - from.x) * eased;
      this.camera.y = from.y + (to.y - from.y) * eased;
      this.camera.scale = from.scale * (to.scale / from.scale) ** eased;
      this.move();
      if (past < 1) this.moving = requestAnimationFrame(step);
    };
    step();
  }
}

/** The chart, while the page shows one. */
export const chart = signal<Chart | null>(null);
