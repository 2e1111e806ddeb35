/** The map of points, with its tools and names. */

import { effect } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { app, shortcut } from "./app";
import { Chart, chart, drawing, drawnBy, hovered } from "./chart";
import { colouring, entryColours, filtering } from "./colours";
import { Gestures, select } from "./gestures";
import { BoxIcon, FitIcon, LassoIcon, MinusIcon, PlusIcon } from "./icons";
import { loaded } from "./live";
import { Names } from "./names";
import { css } from "./palette";
import { Marks } from "./rings";
import { SelectionBar } from "./selection";
import { Tooltip } from "./tooltip";
import { Walk } from "./walk";

const number = new Intl.NumberFormat("en");

export function fit(): void {
  chart.value?.glide((camera) => camera.fit());
}

export function zoom(factor: number): void {
  chart.value?.glide((camera) => camera.zoomAt(camera.width / 2, camera.height / 2, factor));
}

function pan(across: number, down: number): void {
  chart.value?.glide((camera) => camera.pan(across * camera.width, down * camera.height));
}

function draw(how: "lasso" | "box"): void {
  drawing.value = drawing.value === how ? "none" : how;
}

function leave(): void {
  if (drawing.value !== "none") drawing.value = "none";
  else if (app.selected.value.length) app.selected.value = new Uint32Array(0);
}

export function mapKeys(): void {
  const group = "Map" as const;
  shortcut({ key: "+", words: "Zoom in", group, run: () => zoom(1.6) });
  shortcut({ key: "=", words: "Zoom in", group, run: () => zoom(1.6) });
  shortcut({ key: "-", words: "Zoom out", group, run: () => zoom(1 / 1.6) });
  shortcut({ key: "0", words: "Show the whole map", group, run: fit });
  shortcut({ key: "Shift+ArrowLeft", words: "Move the map", group, run: () => pan(0.2, 0) });
  shortcut({ key: "Shift+ArrowRight", words: "Move the map", group, run: () => pan(-0.2, 0) });
  shortcut({ key: "Shift+ArrowUp", words: "Move the map", group, run: () => pan(0, 0.2) });
  shortcut({ key: "Shift+ArrowDown", words: "Move the map", group, run: () => pan(0, -0.2) });
  shortcut({ key: "l", words: "Draw a lasso (Shift adds to the selection, Alt takes out)", group, run: () => draw("lasso") });
  shortcut({ key: "b", words: "Draw a box", group, run: () => draw("box") });
  shortcut({ key: "Escape", words: "Leave lasso and box; then drop the selection", group, run: leave });
}

/** Keys that the map takes while it has the focus. */
function pressed(event: KeyboardEvent, walk: Walk): void {
  const at = chart.value;
  if (!at || event.altKey) return;
  const ctrl = event.ctrlKey || event.metaKey;
  const current = app.current.value;
  const free = app.teaching.value === null; // "n" says no to a class in hand
  if (ctrl && event.key === "a") app.selected.value = at.shownRows();
  else if (ctrl) return;
  else if (event.key === "Enter") walk.start();
  else if (event.key === "j" || (event.key === "n" && free)) walk.on();
  else if (event.key === "k" || (event.key === "p" && free)) walk.back();
  else if (event.key === "x" && current !== null) {
    select(Uint32Array.of(current), app.selected.value.includes(current) ? "less" : "more");
  } else return;
  event.preventDefault();
  event.stopPropagation();
}

/** Everything on the canvas: made once, and ended with the page. */
function start(canvas: HTMLCanvasElement, soft: HTMLCanvasElement, over: HTMLCanvasElement, holder: HTMLElement): () => void {
  const names = new Names(holder);
  const marks = new Marks(over);
  const words = () => {
    const legend = colouring.peek()?.legend;
    const colours = legend ? entryColours(legend) : new Map();
    const texts = new Map(legend?.entries.map((entry) => [entry.code, entry.name]));
    return { text: (code: number) => texts.get(code), colour: (code: number) => css(colours.get(code) ?? [128, 128, 128]) };
  };
  let said = words();
  const made: Chart = new Chart(canvas, soft, () => {
    names.draw(made, said.text, said.colour);
    marks.draw(made);
  });
  new Gestures(canvas, made);
  const walk = new Walk(made);
  const keys = (event: KeyboardEvent) => pressed(event, walk);
  canvas.addEventListener("keydown", keys);
  const endings = [
    effect(() => {
      void [colouring.value, app.theme.value];
      said = words();
      made.redraw();
    }),
    effect(() => {
      void [app.list.value, hovered.value, app.theme.value];
      made.redraw();
    }),
    effect(() => {
      const point = app.current.value === null ? -1 : made.at(app.current.value);
      if (point >= 0) made.glide((camera) => void camera.show(made.points.x[point], made.points.y[point]));
      made.redraw();
    }),
  ];
  chart.value = made;
  return () => {
    endings.forEach((ending) => ending());
    made.end();
    chart.value = null;
  };
}

/** What the map is, for those who do not see it. */
function described(): string {
  const points = app.points.value?.rows.length ?? 0;
  const legend = colouring.value?.legend;
  const parts = [`Map of ${number.format(points)} points.`];
  if (legend) {
    parts.push(`Coloured by ${legend.title}.`);
    if (legend.kind === "category") {
      const most = legend.entries.slice(0, 5).map((entry) => `${entry.name} ${number.format(entry.count)}`);
      parts.push(`${legend.entries.length} values, first: ${most.join(", ")}.`);
    }
  }
  if (app.selected.value.length) parts.push(`${number.format(app.selected.value.length)} selected.`);
  return parts.join(" ");
}

function Caption() {
  const points = app.points.value?.rows.length ?? 0;
  const state = app.state.value;
  if (!points || !state) return null;
  return (
    <p class="map-caption">
      {state.sampled ? `${number.format(points)} of ${number.format(state.rows)} rows, a sample` : `${number.format(points)} points`}
      {colouring.value ? ` · ${colouring.value.legend.title}` : ""}
      {filtering.value ? " · filtered" : ""}
    </p>
  );
}

function Tools() {
  const how = drawing.value;
  const tool = (id: string, words: string, key: string, Icon: () => preact.JSX.Element, run: () => void, pressed?: boolean) => (
    <button class="icon-button quiet" data-testid={id} aria-label={words} aria-pressed={pressed} title={`${words} (${key})`} aria-keyshortcuts={key} onClick={run}>
      <Icon />
    </button>
  );
  return (
    <div class="map-tools" role="toolbar" aria-label="Map tools">
      {tool("lasso", "Lasso", "L", LassoIcon, () => draw("lasso"), how === "lasso")}
      {tool("box", "Box", "B", BoxIcon, () => draw("box"), how === "box")}
      <hr />
      {tool("zoom-in", "Zoom in", "+", PlusIcon, () => zoom(1.6))}
      {tool("zoom-out", "Zoom out", "-", MinusIcon, () => zoom(1 / 1.6))}
      {tool("fit", "Show the whole map", "0", FitIcon, fit)}
    </div>
  );
}

/** What stands in place of points, where there are none. */
function NoPoints() {
  const state = app.state.value;
  if (!state || (app.points.value?.rows.length ?? 0) > 0) return null;
  return (
    <div class="map-note" data-testid="map-note">
      {state.map.making ? (
        <>
          <i class="spinner" />
          <h2>Making the map</h2>
          <p>
            {number.format(state.rows)} rows are laid out by {state.map.method.toUpperCase()}. Search and teaching work meanwhile.
          </p>
        </>
      ) : (
        <>
          <h2>No map yet</h2>
          <p>The rows have no places yet. Search and teaching work without a map.</p>
        </>
      )}
    </div>
  );
}

export function MapArea() {
  const canvas = useRef<HTMLCanvasElement>(null);
  const soft = useRef<HTMLCanvasElement>(null);
  const over = useRef<HTMLCanvasElement>(null);
  const holder = useRef<HTMLDivElement>(null);
  useEffect(() => start(canvas.current!, soft.current!, over.current!, holder.current!), []);
  return (
    <section class="map" aria-label="Map" data-drawing={drawing.value}>
      <canvas
        ref={canvas}
        class="map-canvas"
        data-testid="map-canvas"
        tabIndex={0}
        role="application"
        aria-roledescription="map"
        aria-label={described()}
        aria-describedby="map-keys"
      />
      <p id="map-keys" class="hidden-words">
        Enter opens the point nearest to the middle, J and K walk to nearby points, as N and P do while no class is taught, X takes the open point into the selection.
      </p>
      <canvas ref={soft} class="map-soft" aria-hidden="true" hidden={drawnBy.value === "webgl2"} />
      <canvas ref={over} class="map-over" aria-hidden="true" />
      <div ref={holder} class="map-names" aria-hidden="true" />
      {!loaded.value && (
        <div class="map-note">
          <i class="spinner" />
          <p>Reading the collection</p>
        </div>
      )}
      {loaded.value && <NoPoints />}
      <Caption />
      <Tools />
      <Tooltip />
      {drawing.value !== "none" && <p class="map-hint">{drawing.value === "lasso" ? "Draw around points" : "Drag a box over points"} · Esc leaves</p>}
      <SelectionBar />
    </section>
  );
}

