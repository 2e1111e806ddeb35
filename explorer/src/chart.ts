/** The map: its camera, what is drawn, and which point is where. */

import { effect, signal } from "@preact/signals";
import { app, type Points } from "./app";
import { Camera, type Box } from "./camera";
import { colouring, filtering, painter, shownCodes, shownRange, shows, type Colouring } from "./colours";
import { packed, type Rgb } from "./palette";
import { Area, boxOf, Grid, middles, type Middle } from "./places";
import { Raster } from "./raster";
import { Scene, type Drawer, type Layer } from "./scene";
import { calm, kept, tokenRgb } from "./theme";

const SMOOTH = 45; // ms that a frame may take while the map moves, before fewer points are drawn
const SETTLES = 180; // ms after the last move, until all points are drawn
const MANY = 30_000; // points from which on a graphics card is asked; fewer are drawn as fast without
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
/** What draws the map. */
export const drawnBy = signal<"processor" | "webgl2">("processor");

/** Numbers from 0 to n - 1 in steps that lead everywhere: each beginning of them is a fair sample. */
function spread(n: number): Uint32Array<ArrayBuffer> {
  const common = (a: number, b: number): number => (b ? common(b, a % b) : a);
  let step = Math.max(1, Math.round(0.618034 * n));
  while (common(step, n) > 1) step++;
  const order = new Uint32Array(n);
  for (let i = 1; i < n; i++) order[i] = (order[i - 1] + step) % n;
  return order;
}

/** What the picture is made of; where one of them is the same as before, less is done again. */
interface Inputs {
  points: Points | null;
  colours: Colouring | null;
  codes: ReadonlySet<number>;
  range: readonly [number, number];
  selected: Uint32Array;
  theme: string;
}

export class Chart {
  readonly camera = new Camera();
  points: Points = { rows: new Uint32Array(0), x: new Float32Array(0), y: new Float32Array(0) };
  names: Middle[] = [];
  outline: Outline = [];

  private drawer: Drawer;
  private asked = false; // whether there is a graphics card
  private box: Box = boxOf(this.points.x, this.points.y);
  private grid: Grid | null = null;
  private places = new Int32Array(0); // of a row in `points`; -1: not drawn
  private spread = new Uint32Array(0);
  private dimmed = new Uint8Array(0);
  private inputs: Inputs | null = null;
  private counts: [number, number, number] = [0, 0, 0];
  private background: Rgb = [255, 255, 255];
  private wanted = 0;
  private moves = false;
  private settling = 0;
  private cost = 0; // ms of a frame with all points
  private density = 1;
  private moving = 0;
  private readonly endings: (() => void)[] = [];

  constructor(
    private readonly canvas: HTMLCanvasElement,
    soft: HTMLCanvasElement,
    private readonly drawn: () => void,
  ) {
    this.drawer = new Raster(soft);
    canvas.addEventListener("webglcontextlost", (event) => {
      event.preventDefault();
      drawnBy.value = "processor";
      this.change(new Raster(soft));
    });
    const watch = new ResizeObserver(() => this.resize());
    watch.observe(canvas);
    this.endings.push(
      () => watch.disconnect(),
      effect(() =>
        this.take({
          points: app.points.value,
          colours: colouring.value,
          codes: shownCodes.value,
          range: shownRange.value,
          selected: app.selected.value,
          theme: app.theme.value,
        }),
      ),
    );
  }

  end(): void {
    cancelAnimationFrame(this.wanted);
    cancelAnimationFrame(this.moving);
    clearTimeout(this.settling);
    for (const ending of this.endings) ending();
  }

  /** Draw by other means. */
  private change(drawer: Drawer): void {
    this.drawer = drawer;
    drawer.setPlaces(this.points.x, this.points.y);
    const inputs = this.inputs;
    this.inputs = null;
    if (inputs) this.take(inputs);
  }

  /** Where there are many points, draw them by a graphics card, if there is one. */
  private accelerate(): void {
    const wanted = kept("penult.draw"); // "webgl2" or "processor": for trying out
    if (this.asked || (this.points.rows.length < MANY && wanted !== "webgl2")) return;
    this.asked = true;
    if (wanted === "processor") return;
    setTimeout(() => {
      const scene = Scene.on(this.canvas, wanted === "webgl2");
      if (!scene) return;
      drawnBy.value = "webgl2";
      this.change(scene);
    }, 50);
  }

  private resize(): void {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!width || !height) return;
    this.density = Math.min(2, window.devicePixelRatio || 1);
    this.canvas.width = Math.round(width * this.density);
    this.canvas.height = Math.round(height * this.density);
    this.cost = 0;
    this.camera.resize(width, height);
    this.draw(); // at once: a canvas of a new size is empty
  }

  private take(next: Inputs): void {
    const before = this.inputs;
    const { points, colours } = next;
    this.inputs = next;
    this.background = tokenRgb("--map-bg");
    if (!points) return;
    if (points !== this.points) this.place(points);
    const same = before !== null && before.points === points && before.colours === colours;
    const shown = same && before.codes === next.codes && before.range === next.range;
    const fits = colours !== null && colours.values.length === points.rows.length ? colours : null;
    if (!shown) this.leaveOut(fits);
    if (!shown || before?.theme !== next.theme) this.paint(fits);
    if (!shown || before?.selected !== next.selected) this.arrange(next.selected);
    this.redraw();
  }

  private place(points: Points): void {
    const first = this.points.rows.length === 0;
    const n = points.rows.length;
    this.points = points;
    this.box = boxOf(points.x, points.y);
    this.grid = null;
    this.spread = spread(n);
    let most = -1;
    for (let i = 0; i < n; i++) most = Math.max(most, points.rows[i]);
    this.places = new Int32Array(most + 1).fill(-1);
    for (let i = 0; i < n; i++) this.places[points.rows[i]] = i;
    this.camera.bounds(this.box);
    if (first) this.camera.fit();
    this.drawer.setPlaces(points.x, points.y);
    this.cost = 0;
    hovered.value = -1;
  }

  /** Which points the legend leaves out, and where the names of the others stand. */
  private leaveOut(colours: Colouring | null): void {
    const { points } = this;
    this.dimmed = new Uint8Array(points.rows.length);
    if (colours && filtering.peek()) {
      for (let i = 0; i < this.dimmed.length; i++) this.dimmed[i] = shows(colours.legend, colours.values[i]) ? 0 : 1;
    }
    const named = colours?.legend.kind === "category";
    this.names = named ? middles(points.x, points.y, colours.values, this.dimmed) : [];
  }

  private paint(colours: Colouring | null): void {
    const n = this.points.rows.length;
    const none = packed(tokenRgb("--map-none"));
    const plain = packed(tokenRgb("--map-plain"));
    const paint = new Uint32Array(n);
    if (colours) {
      const colour = painter(colours.legend, none);
      for (let i = 0; i < n; i++) paint[i] = this.dimmed[i] ? none : colour(colours.values[i]);
    } else paint.fill(plain);
    this.drawer.setPaint(new Uint8Array(paint.buffer));
  }

  /** The order of drawing: points that are left out, shown, selected; each without a pattern. */
  private arrange(selected: Uint32Array): void {
    const n = this.points.rows.length;
    const kinds = new Uint8Array(n);
    for (let i = 0; i < n; i++) kinds[i] = this.dimmed[i] ? DIMMED : SHOWN;
    for (const row of selected) {
      const at = this.at(row);
      if (at >= 0) kinds[at] = SELECTED;
    }
    this.counts = [0, 0, 0];
    for (let i = 0; i < n; i++) this.counts[kinds[i]]++;
    const order = new Uint32Array(n);
    const next = [0, this.counts[0], this.counts[0] + this.counts[1]];
    for (let i = 0; i < n; i++) {
      const point = this.spread[i];
      order[next[kinds[point]]++] = point;
    }
    this.drawer.setOrder(order);
  }

  /** Draw with the next frame of the screen. */
  redraw(): void {
    if (!this.wanted) this.wanted = requestAnimationFrame(() => this.draw());
  }

  /** The camera has moved. */
  move(): void {
    this.moves = true;
    clearTimeout(this.settling);
    this.settling = window.setTimeout(() => {
      this.moves = false;
      this.redraw();
    }, SETTLES);
    this.redraw();
  }

  private draw(): void {
    cancelAnimationFrame(this.wanted);
    this.wanted = 0;
    const started = performance.now();
    const share = this.moves && this.cost > SMOOTH ? Math.max(0.04, SMOOTH / this.cost) : 1;
    this.drawer.draw(this.camera, this.density, this.background, this.layers(), share);
    if (share === 1 && this.cost === 0 && this.points.rows.length > 100_000) {
      this.drawer.finish();
      this.cost = performance.now() - started;
    }
    this.drawn();
    frames.value++;
    this.accelerate();
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
  private readonly may = (point: number): boolean => this.dimmed[point] === 0;

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
