/** Rows as the server has them, kept until something changes there. */

import { effect, signal } from "@preact/signals";
import { attempt, changes, get } from "./api";
import { app } from "./app";
import { settings } from "./settings";
import { fetchSound, openEarly } from "./sound";
import type { Row, RowShort } from "./types";

/** Short rows for lists. What is here stays until newer ones have come. */
export const shorts = signal<ReadonlyMap<number, RowShort>>(new Map());
export const epoch = signal(0); // grows when rows may have changed
const asked = new Set<number>();
const AT_ONCE = 100;

const MOST = 400;
const whole = new Map<number, Promise<Row>>();

function fetchRow(row: number): Promise<Row> {
  let one = whole.get(row);
  if (!one) {
    one = get<Row>("/api/row", { row });
    one.catch(() => whole.delete(row));
    stale.delete(row);
    whole.set(row, one);
    if (whole.size > MOST) whole.delete(whole.keys().next().value!);
  }
  return one;
}

/** Have a row and its sound at hand before they are wanted. */
export async function prefetch(row: number | undefined): Promise<void> {
  if (row === undefined) return;
  const one = await fetchRow(row).catch(() => null);
  const media = one?.media;
  if (media?.kind === "audio" && media.url && !media.error) {
    await fetchSound(media, settings.context.peek()).catch(() => null);
  }
}

const stale = new Set<number>(); // rows that are shown as they were, until they are here anew

/** Something has changed: the current row is read anew, the others when they are next shown. */
function forget(): void {
  for (const row of whole.keys()) stale.add(row);
  const row = app.current.peek();
  if (row !== null) void show(row);
}

async function renew(row: number): Promise<void> {
  if (!stale.delete(row)) return;
  whole.delete(row);
  const one = await attempt(() => fetchRow(row));
  if (app.current.peek() === row && one) app.row.value = one;
}

async function show(row: number): Promise<void> {
  const one = await attempt(() => fetchRow(row));
  if (app.current.peek() !== row) return;
  if (!one) whole.delete(row);
  app.row.value = one;
  void renew(row);
  const list = app.list.peek()?.rows ?? [];
  const at = list.indexOf(row);
  if (at >= 0) for (const near of [list[at + 1], list[at - 1]]) await prefetch(near);
}

effect(() => {
  const row = app.current.value;
  if (row !== null) {
    const known = shorts.peek().get(row);
    if (known) openEarly(known);
    void show(row);
  } else app.row.value = null;
});

export function keepShort(rows: RowShort[]): void {
  const next = new Map(shorts.peek());
  for (const one of rows) next.set(one.row, one);
  shorts.value = next;
}

/** Ask for rows that are not here yet. */
export async function wantShort(rows: number[]): Promise<void> {
  const missing = rows.filter((row) => !asked.has(row));
  for (let i = 0; i < missing.length; i += AT_ONCE) {
    const part = missing.slice(i, i + AT_ONCE);
    part.forEach((row) => asked.add(row));
    const answer = await attempt(() => get<{ rows: RowShort[] }>("/api/rows", { rows: part.join(",") }));
    if (answer) keepShort(answer.rows);
    else part.forEach((row) => asked.delete(row));
  }
}

let known: { version: number; session: string; rows: number } | null = null;
let own = 0; // changes of this page when the state was last read
effect(() => {
  const state = app.state.value;
  if (!state || state.version === known?.version) return;
  if (known) {
    const others = changes.peek() === own || state.rows !== known.rows;
    if (state.session !== known.session) {
      shorts.value = new Map();
      whole.clear();
    }
    if (others) { // what another process changed is asked for anew; marks of this page change no list
      asked.clear();
      epoch.value = epoch.peek() + 1;
    }
    forget();
  }
  own = changes.peek();
  known = state;
});

/** The address of a small picture of a row. */
export function thumbnail(one: RowShort, size: number): string | null {
  const kind = app.state.value?.modality;
  const words = new URLSearchParams({ id: one.id, region: one.region });
  if (kind === "image") return `/media/image?${words}&size=${size}`;
  if (kind === "video") return `/media/frame?${words}&at=${one.start ?? 0}`;
  return null;
}

export function nameOf(id: string): string {
  return id.split("/").pop() || id;
}

function clock(seconds: number): string {
  const minutes = Math.floor(seconds / 60);
  const rest = seconds - 60 * minutes;
  return minutes ? `${minutes}:${rest.toFixed(rest % 1 ? 2 : 0).padStart(2, "0")}` : `${Number(rest.toFixed(2))} s`;
}

/** Which part of the item a row is, for people. */
export function whereOf(one: RowShort): string {
  if (one.start === null && one.end === null) return one.region === "whole" ? "" : one.region;
  return `${clock(one.start ?? 0)} – ${one.end === null ? "end" : clock(one.end)}`;
}

export function percent(value: number): string {
  return `${(100 * value).toFixed(value > 0.0995 || value === 0 ? 0 : 1)} %`;
}
