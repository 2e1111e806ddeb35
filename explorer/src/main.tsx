/** Start of the page. */

import "./style.css";
import "./layout.css";
import "./panels.css";
import { effect } from "@preact/signals";
import { render } from "preact";
import { app } from "./app";
import { chart, frames } from "./chart";
import { startKeys } from "./keys";
import { Layout, startLayout } from "./layout";
import { loaded, startLive } from "./live";
import { mapKeys } from "./map";
import { startTheme } from "./theme";

/** What others may read of the map: where a row's point is in the page (CSS pixels; null where it
 * is not drawn), whether all is loaded and drawn, how many points there are, frames drawn so far. */
const handle = {
  screen(row: number): { x: number; y: number } | null {
    const [map, canvas] = [chart.peek(), document.querySelector(".map-canvas")];
    const point = map?.at(row) ?? -1;
    if (!map || !canvas || point < 0) return null;
    const [left, top] = map.screen(point);
    const box = canvas.getBoundingClientRect();
    return { x: box.left + left, y: box.top + top };
  },
  get ready(): boolean {
    return loaded.peek() && (chart.peek() === null || (frames.peek() > 0 && chart.peek()?.points === (app.points.peek() ?? undefined)));
  },
  get points(): number {
    return app.points.peek()?.rows.length ?? 0;
  },
  get frames(): number {
    return frames.peek();
  },
};

Object.defineProperty(window, "penult", { value: Object.freeze(handle) });

const FIRST = "penult-first-picture"; // of the performance timeline: when the first map stood

/** `<html data-ready>` stands while `penult.ready` is true, for those who wait for a selector. */
effect(() => {
  void [loaded.value, frames.value, app.points.value];
  const ready = handle.ready;
  if (ready && !performance.getEntriesByName(FIRST).length) performance.mark(FIRST);
  document.documentElement.toggleAttribute("data-ready", ready);
});

startTheme();
startLayout();
mapKeys();
startKeys();
const page = document.getElementById("page");
startLive(); // before the page is drawn: the browser may take its time to open the canvas
if (page) render(<Layout />, page);
