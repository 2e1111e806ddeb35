/** What the page knows of the collection is asked again every two seconds, as others change it. */

import { batch, effect, signal } from "@preact/signals";
import { app, type Points } from "./app";
import { bytes, changes, get, RequestFailed } from "./api";
import { askColouring, colouring, setColouring } from "./colours";
import { kept } from "./theme";
import type { Column, RowShort, State } from "./types";

const EVERY = 2000; // ms
const PATIENCE = 15_000; // ms that an answer may take, once there was one
const EVERY_HIDDEN = 15_000; // where the page is in the background

/** Why the page is cut off, in words; null while the server answers. */
export const cutOff = signal<string | null>(null);
/** Whether the first answers are here. */
export const loaded = signal(false);
/** What went wrong before anything could be shown. */
export const failed = signal<string | null>(null);

type News = Pick<State, "version" | "session" | "running"> & Partial<State>;

let timer = 0;
let asking: Promise<void> | null = null;
let again = false;
let placed = ""; // the state that `app.points` are of
let known = 0; // changes of this page that were seen at the last answer
let early: Promise<Points> | null = null; // points that were asked for before the state was known

export function startLive(): void {
  effect(() => {
    if (changes.value > 0) void poll();
  });
  effect(() => {
    const column = app.colour.value;
    if (loaded.value) void recolour(column);
  });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) void poll();
  });
  early = askPoints();
  early.catch(() => (early = null)); // asked for again with the state
  void poll();
}

/** Ask now; where an answer is under way, once more after it. */
export function poll(): Promise<void> {
  if (asking) {
    again = true;
    return asking;
  }
  clearTimeout(timer);
  asking = ask().finally(() => {
    asking = null;
    timer = window.setTimeout(poll, again ? 0 : document.hidden ? EVERY_HIDDEN : EVERY);
    again = false;
  });
  return asking;
}

async function ask(): Promise<void> {
  try {
    const past = app.state.value;
    const query: Record<string, number> = past ? { since: past.version } : {};
    const news = await get<News>("/api/state", query, past ? { signal: AbortSignal.timeout(PATIENCE) } : {});
    const anew = past && news.session !== past.session;
    if (anew) await startAnew(); // what is asked for meanwhile would be taken away by it
    cutOff.value = null;
    failed.value = null;
    if (anew) return;
    if (isWhole(news)) await take(news);
    else if (past) app.state.value = { ...past, running: news.running };
  } catch (error) {
    lost(error);
  }
}

function isWhole(news: News): news is State {
  return news.rows !== undefined;
}

function lost(error: unknown): void {
  const words = error instanceof Error ? error.message : String(error);
  const status = error instanceof RequestFailed ? error.status : -1;
  if (!loaded.value) failed.value = words;
  else if (status === 0) cutOff.value = "The server does not answer. Trying again …";
  else if (status === 401 || status === 403) {
    cutOff.value = "This page belongs to a server that has ended. Open the address that the new one has printed.";
  } else cutOff.value = `The server could not tell how the collection stands: ${words}`;
}

/** Take a whole state: the points where they may have changed, and their colours. */
async function take(state: State): Promise<void> {
  const first = !loaded.value;
  const places = JSON.stringify([state.rows, state.drawn, state.map, state.space]);
  const before = changes.value;
  const stay = places === placed && before !== known; // this page's own marks and names move no point
  known = before;
  const column = chosen(state.columns);
  const [points, colours] = await Promise.all([
    stay ? app.points.value : newPoints(state.drawn),
    first || state.version !== app.state.value?.version ? askColouring(column) : colouring.value,
  ]);
  batch(() => {
    app.state.value = state;
    app.points.value = points;
    app.colour.value = column;
    setColouring(colours);
    loaded.value = true;
  });
  placed = places;
  if (changes.value !== before) again = true;
}

/** The points as they are now; those there were, where they are the same. */
async function newPoints(drawn: number): Promise<Points> {
  let points = await (early ?? askPoints());
  if (early && points.rows.length !== drawn) points = await askPoints();
  early = null;
  const before = app.points.peek();
  return before && alike(before.rows, points.rows) && alike(before.x, points.x) && alike(before.y, points.y) ? before : points;
}

function alike(a: Uint32Array | Float32Array, b: Uint32Array | Float32Array): boolean {
  return a.length === b.length && a.every((value, i) => value === b[i]);
}

async function askPoints(): Promise<Points> {
  const answer = await bytes("/api/points");
  const m = answer.byteLength / 12;
  return {
    rows: new Uint32Array(answer, 0, m),
    x: new Float32Array(answer, 4 * m, m),
    y: new Float32Array(answer, 8 * m, m),
  };
}

/** The column that colours: the one there was, the one of the last visit, or labels. */
function chosen(columns: Column[]): Column | null {
  const id = loaded.value ? app.colour.value?.id : kept("penult.colour");
  if (id === "" || (loaded.value && !app.colour.value)) return null;
  const same = columns.find((column) => column.id === id);
  return same ?? columns.find((column) => column.id === "label") ?? columns[0] ?? null;
}

async function recolour(column: Column | null): Promise<void> {
  if (colouring.peek()?.legend.by === column?.id) return;
  const next = await askColouring(column);
  if (app.colour.peek()?.id === column?.id) setColouring(next);
}

/** Another server answers: numbers of rows mean others, so what was chosen is found again by id. */
async function startAnew(): Promise<void> {
  const current = app.row.peek();
  const state = await get<State>("/api/state");
  placed = "";
  batch(() => {
    if (app.state.value) app.state.value = { ...app.state.value, version: -1 }; // what is kept of rows is void
    app.selected.value = new Uint32Array(0);
    app.likes.value = [];
    app.dislikes.value = [];
    app.list.value = null;
    app.current.value = null;
  });
  await take(state);
  if (current) {
    const found = await get<{ rows: RowShort[] }>("/api/find", { text: current.id, k: 50 });
    const same = found.rows.find((row) => row.id === current.id && row.region === current.region);
    if (same) app.current.value = same.row;
  }
  app.message.value = { kind: "done", words: "The server was started anew. The page shows what it has now." };
}
