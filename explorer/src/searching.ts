/** Searches by example: what was asked last, and its answer as the list in hand. */

import { computed, signal } from "@preact/signals";
import { attempt, get, post, upload } from "./api";
import { app, shortcut, type List } from "./app";
import { keepShort } from "./rows";
import type { Hit, RowShort } from "./types";

export interface PartOfRow {
  row: number;
  start: number; // seconds in the recording
  end: number;
}

type Ask = (k: number) => Promise<{ hits: Hit[]; what: string }>;

export const searching = signal(false);
export const filter = signal(""); // of the rows that may be found, as of --where

const FIRST = 200;
const MOST = 10_000;
let asked: Ask | null = null;
const answered = signal<List | null>(null); // the list that the last search by example gave
let length = FIRST;
let turn = 0;

/** Whether the list in hand is what the last search gave. */
export const inHand = computed(() => app.list.value !== null && app.list.value === answered.value);

/** Whether there may be more hits than are listed. */
export const more = computed(() => inHand.value && length < MOST && app.list.value!.rows.length >= length - 1);

async function answer(): Promise<void> {
  const ask = asked;
  if (!ask) return;
  const mine = ++turn;
  searching.value = true;
  const found = await attempt(() => ask(length));
  if (mine !== turn) return;
  searching.value = false;
  if (!found) return;
  const notes = new Map(found.hits.map((hit) => [hit.row, hit.similarity.toFixed(3)]));
  answered.value = app.list.value = { title: found.what, rows: found.hits.map((hit) => hit.row), notes };
}

function begin(ask: Ask): Promise<void> {
  asked = ask;
  length = FIRST;
  return answer();
}

export function searchMore(): Promise<void> {
  length = Math.min(MOST, 5 * length);
  return answer();
}

function query(body: Record<string, unknown>): Ask {
  const where = filter.value.trim();
  return (k) => post("/api/search", { like: [], unlike: [], ...body, k, ...(where && { where }) });
}

/** Rows like those that are liked, unlike those that are not. */
export async function searchLikes(): Promise<void> {
  const [like, unlike] = [app.likes.value, app.dislikes.value];
  if (like.length || unlike.length) await begin(query({ like, unlike }));
}

export async function searchPart(region: PartOfRow): Promise<void> {
  await begin(query({ region }));
}

export async function searchFile(file: Blob, name: string): Promise<void> {
  const where = filter.value.trim();
  await begin((k) => {
    const form = new FormData();
    form.append("file", file, name);
    form.append("k", String(k));
    if (where) form.append("where", where);
    return upload("/api/search/upload", form);
  });
}

/** Rows whose id, label or metadata contain a text. */
export async function findText(text: string): Promise<void> {
  asked = null;
  const mine = ++turn;
  searching.value = true;
  const found = await attempt(() => get<{ rows: RowShort[] }>("/api/find", { text, k: 1000 }));
  if (mine !== turn) return;
  searching.value = false;
  if (!found) return;
  keepShort(found.rows);
  app.list.value = { title: `Rows with “${text}”`, rows: found.rows.map((one) => one.row), notes: new Map() };
}

function put(row: number | null, liked: boolean): void {
  if (row === null) return;
  if (!inHand.value) app.likes.value = app.dislikes.value = []; // those of a search that is over
  const [to, from] = liked ? [app.likes, app.dislikes] : [app.dislikes, app.likes];
  from.value = from.value.filter((one) => one !== row);
  if (!to.value.includes(row)) to.value = [...to.value, row];
  void searchLikes();
}

export const moreLike = () => put(app.current.value, true);
export const lessLike = () => put(app.current.value, false);

export function unlike(row: number): void {
  app.likes.value = app.likes.value.filter((one) => one !== row);
  app.dislikes.value = app.dislikes.value.filter((one) => one !== row);
  void searchLikes();
}

export function searchCurrent(): void {
  if (app.current.value === null) return;
  app.likes.value = [app.current.value];
  app.dislikes.value = [];
  void searchLikes();
}

shortcut({ key: "s", words: "Search by the current row", group: "Search", run: searchCurrent });
shortcut({ key: "m", words: "More like the current row", group: "Search", run: moreLike });
shortcut({ key: "Shift+m", words: "Less like the current row", group: "Search", run: lessLike });
