/** The class in hand: its marks, what is suggested next, and how well it is known. */

import { computed, effect, signal, type Signal } from "@preact/signals";
import { attempt, get, post } from "./api";
import { app, shortcut, type List } from "./app";
import { percent } from "./rows";
import { settings } from "./settings";
import type { ClassInfo, Column, Mark, Suggestion, Taught } from "./types";

export type Order = "likely" | "uncertain" | "different";
type Page = Taught & { rows: Suggestion[] };

const BATCH = 5; // suggestions of one fit: what was measured best
const AHEAD = 1; // suggestions left when the next ones are asked for

export const taught: Signal<Taught | null> = signal(null);
export const order: Signal<Order> = signal("likely");
export const loading = signal(false); // suggestions
export const saving = signal(0); // marks that the server does not have yet
export const exhausted = signal(false);
export const grown: Signal<ReadonlyMap<string, readonly number[]>> = signal(new Map()); // held-out score as it grew
export const reasons: Signal<ReadonlyMap<number, Suggestion>> = signal(new Map());

/** Marks made here: class → row → mark. What rows bring along stands behind them. */
export const marks: Signal<ReadonlyMap<string, ReadonlyMap<number, Mark>>> = signal(new Map());

export const annotator = computed(() => settings.annotator.value.trim() || app.state.value?.user || "");
export const classes = computed<ClassInfo[]>(() => app.state.value?.classes ?? []);
export const inHand = computed(() => classes.value.find((one) => one.name === app.teaching.value) ?? null);

/** This annotator's mark on the current row, of the class in hand. */
export const currentMark = computed<Mark>(() => {
  const [row, name] = [app.row.value, app.teaching.value];
  const number = app.current.value;
  if (number === null || name === null) return "none";
  const here = marks.value.get(name)?.get(number);
  if (here) return here;
  return (row?.row === number && row.marks[name]?.[annotator.value]) || "none";
});

function setLocal(name: string, row: number, mark: Mark | undefined): void {
  const next = new Map(marks.peek());
  const rows = new Map(next.get(name));
  if (mark === undefined) rows.delete(row);
  else rows.set(row, mark);
  marks.value = next.set(name, rows);
}

/** What the server says of classes becomes what the page shows. */
function take(answer: Taught): void {
  taught.value = answer;
  const state = app.state.peek();
  if (state) app.state.value = { ...state, classes: answer.classes };
  const score = answer.held_out?.average_precision ?? null;
  if (answer.name && score !== null) {
    const before = grown.peek().get(answer.name) ?? [];
    if (before[before.length - 1] !== score) {
      grown.value = new Map(grown.peek()).set(answer.name, [...before, score]);
    }
  }
}

export function scoreColumn(name: string): Column {
  return { id: `score:${name}`, title: `Score of ${name}`, kind: "number" };
}

// What is suggested.

let offered: { name: string; list: List } | null = null;
let hungry = false; // the next suggestion is gone to as soon as it is here
let turn = 0;

const isMarked = (name: string, row: number) => (marks.peek().get(name)?.get(row) ?? "none") !== "none";

/** Whether the list in hand is the suggestions for the class in hand. */
function offering(): boolean {
  return offered !== null && app.list.peek() === offered.list && offered.name === app.teaching.peek();
}

function open(name: string): number[] {
  return offered ? offered.list.rows.filter((row) => !isMarked(name, row)) : [];
}

function note(one: Suggestion): string {
  return one.probability === null ? one.score.toFixed(2) : percent(one.probability);
}

function append(name: string, page: Page, fresh: boolean): void {
  const before = fresh || offered?.name !== name ? null : offered.list;
  const had = new Set(before?.rows);
  const found = page.rows.filter((one) => !had.has(one.row) && !isMarked(name, one.row)).slice(0, BATCH);
  exhausted.value = !found.length;
  const notes = new Map(before?.notes);
  const why = new Map(reasons.peek());
  for (const one of found) {
    notes.set(one.row, note(one));
    why.set(one.row, one);
  }
  reasons.value = why;
  const list = { title: `Suggestions for ${name}`, rows: [...(before?.rows ?? []), ...found.map((one) => one.row)], notes };
  const shown = fresh || before === null || app.list.peek() === before;
  offered = { name, list };
  if (shown) app.list.value = list;
  if (hungry && found.length) {
    hungry = false;
    app.current.value = found[0]!.row;
  }
}

/** Ask for the next suggestions; fresh: in place of those that are there. */
async function suggest(fresh: boolean): Promise<void> {
  const name = app.teaching.peek();
  if (name === null || (loading.peek() && !fresh)) return;
  const mine = ++turn;
  loading.value = true;
  await settle();
  const k = BATCH + (fresh ? 0 : open(name).length);
  const page = await attempt(() => get<Page>("/api/suggest", { class: name, order: order.peek(), k }));
  if (mine !== turn) return;
  loading.value = false;
  if (!page) return;
  take(page);
  append(name, page, fresh);
}

/** Take a class in hand. */
export function teach(name: string): void {
  const clean = name.trim();
  if (!clean) return;
  turn++;
  loading.value = false;
  app.teaching.value = clean;
  taught.value = null;
  reasons.value = new Map();
  exhausted.value = false;
  offered = null;
  hungry = (inHand.peek()?.yes ?? 0) > 0;
  if (hungry) void suggest(true);
}

export function reorder(next: Order): void {
  order.value = next;
  hungry = true;
  if ((inHand.peek()?.yes ?? 0) > 0) void suggest(true);
}

/** Back to the suggestions from another list. */
export function resume(): void {
  const name = app.teaching.peek();
  if (name === null) return;
  hungry = true;
  if (offered?.name !== name) {
    void suggest(true);
    return;
  }
  app.list.value = offered.list;
  goOn(name);
}

/** To the first suggestion that has no mark yet; where there is none, to the next that comes. */
function goOn(name: string): void {
  const next = open(name)[0];
  hungry = next === undefined;
  if (next !== undefined) app.current.value = next;
}

/** To the row behind the one that was marked. */
function advance(name: string, row: number): void {
  const list = app.list.peek();
  const at = list?.rows.indexOf(row) ?? -1;
  if (list && at >= 0) {
    const next = list.rows.slice(at + 1).find((one) => !isMarked(name, one));
    if (next !== undefined) app.current.value = next;
    else if (offering()) goOn(name);
  } else if (!list || offering()) goOn(name);
}

// Marks on their way.

interface Made {
  name: string;
  row: number;
  mark: Mark;
  before: Mark | undefined;
}

const outbox: Made[] = [];
const done: Made[] = [];
const undone: Made[] = [];
let sending: Promise<void> | null = null;

/** Once the server has all marks. */
async function settle(): Promise<void> {
  while (sending) await sending;
}

async function send(): Promise<void> {
  while (outbox.length) {
    const name = outbox[0]!.name;
    const until = outbox.findIndex((one) => one.name !== name);
    const some = outbox.splice(0, until < 0 ? outbox.length : until);
    const body = { class: name, marks: some.map(({ row, mark }) => ({ row, mark })), who: annotator.peek() };
    try {
      take(await post<Taught>("/api/marks", body));
      done.push(...some);
    } catch (error) {
      takeBack(some, error instanceof Error ? error.message : String(error));
    }
    saving.value = outbox.length;
  }
}

function takeBack(some: Made[], words: string): void {
  const gone = [...some, ...outbox.splice(0)]; // what was marked meanwhile stands on these
  for (const one of gone.reverse()) setLocal(one.name, one.row, one.before);
  const count = gone.length === 1 ? "The mark was" : `${gone.length} marks were`;
  app.message.value = { kind: "error", words: `${count} not kept: ${words}` };
  app.current.value = some[0]!.row;
}

/** Mark the current row, and go on. Pressed again by hand, a mark is taken away; never by a key, since
 * one that comes too early means the row that is still on its way. */
export function mark(given: Mark, byKey = false): void {
  const [name, row] = [app.teaching.peek(), app.current.peek()];
  if (name === null || row === null) {
    const words = row === null ? "Pick a row first: on the map, or in a list." : "Name a class first, in the panel Teach.";
    app.message.value = { kind: "error", words };
    return;
  }
  if (byKey && hungry && currentMark.peek() !== "none") return;
  const same = currentMark.peek() === given;
  if (same && byKey) {
    advance(name, row);
    return;
  }
  const one: Made = { name, row, mark: same ? "none" : given, before: marks.peek().get(name)?.get(row) };
  setLocal(name, row, one.mark);
  undone.length = 0;
  outbox.push(one);
  saving.value = outbox.length;
  if (!same) advance(name, row);
  sending ??= send().finally(() => {
    sending = null;
    after(name);
  });
}

/** Marks are kept: look whether suggestions run short. */
function after(name: string): void {
  if (app.teaching.peek() !== name || !(inHand.peek()?.yes ?? 0)) return;
  const left = open(name).length;
  if (left <= AHEAD && (offering() || hungry)) void suggest(false);
}

async function turnBack(path: "/api/undo" | "/api/redo", from: Made[], to: Made[]): Promise<void> {
  await settle();
  const answer = await attempt(() => post<Taught>(path, { who: annotator.peek() }));
  if (!answer) return;
  take(answer);
  const one = from.pop();
  if (one) {
    to.push(one);
    setLocal(one.name, one.row, path === "/api/undo" ? (one.before ?? "none") : one.mark);
    if (app.teaching.peek() === one.name) app.current.value = one.row;
  }
  app.message.value = { kind: "done", words: answer.words };
}

export const undo = () => turnBack("/api/undo", done, undone);
export const redo = () => turnBack("/api/redo", undone, done);

// Classes as a whole.

export async function rename(old: string, next: string): Promise<boolean> {
  await settle();
  const answer = await attempt(() => post<Taught>("/api/classes/rename", { old, new: next }));
  if (!answer) return false;
  const moved = new Map(marks.peek());
  moved.set(next, new Map([...(moved.get(next) ?? []), ...(moved.get(old) ?? [])]));
  moved.delete(old);
  marks.value = moved;
  for (const one of [...done, ...undone]) if (one.name === old) one.name = next;
  take(answer);
  if (app.teaching.peek() === old) teach(next);
  return true;
}

export async function remove(name: string): Promise<boolean> {
  await settle();
  const answer = await attempt(() => post<Taught>("/api/classes/remove", { name }));
  if (!answer) return false;
  const left = new Map(marks.peek());
  left.delete(name);
  marks.value = left;
  if (app.teaching.peek() === name) {
    turn++;
    app.teaching.value = null;
    taught.value = null;
    offered = null;
    loading.value = false;
  }
  take(answer);
  if (app.colour.peek()?.id === scoreColumn(name).id) app.colour.value = null;
  return true;
}

export async function disagreements(): Promise<void> {
  type Dispute = { row: number; class: string; marks: Record<string, Mark> };
  const found = await attempt(() => get<{ rows: Dispute[] }>("/api/disagreements"));
  if (!found) return;
  if (!found.rows.length) {
    app.message.value = { kind: "done", words: "No row has marks that disagree." };
    return;
  }
  const notes = new Map<number, string>();
  for (const one of found.rows) {
    const words = Object.entries(one.marks).map(([who, given]) => `${who}: ${given}`);
    const before = notes.get(one.row);
    notes.set(one.row, `${before ? `${before}; ` : ""}${one.class}: ${words.join(", ")}`);
  }
  app.list.value = { title: "Marks that disagree", rows: [...notes.keys()], notes };
}

shortcut({ key: "y", words: "Yes: the row is of the class in hand", group: "Teach", run: () => mark("yes", true) });
shortcut({ key: "n", words: "No: it is not", group: "Teach", run: () => mark("no", true) });
shortcut({ key: "u", words: "Unsure", group: "Teach", run: () => mark("unsure", true) });
for (const [key, words, run] of [
  ["z", "Undo the last mark", undo],
  ["Ctrl+z", "Undo the last mark", undo],
  ["Shift+Z", "Redo", redo],
  ["Ctrl+Shift+Z", "Redo", redo],
] as const) shortcut({ key, words, group: "Teach", run: () => void run() });

let before = "";
effect(() => { // numbers of rows are of one session, and marks of one annotator
  const now = `${app.state.value?.session ?? ""} ${annotator.value}`;
  if (now === before) return;
  before = now;
  marks.value = new Map();
  done.length = undone.length = 0;
  offered = null;
});
