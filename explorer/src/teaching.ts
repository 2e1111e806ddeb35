/** The class in hand: its marks, what is suggested next, and how well it is known. */

import { computed, effect, signal, type Signal } from "@preact/signals";
import { attempt, get, post } from "./api";
import { app, shortcut, type List } from "./app";
import { epoch, percent } from "./rows";
import { settings } from "./settings";
import type { ClassInfo, Column, Mark, Suggestion, Taught } from "./types";

export type Order = "mixed" | "likely" | "uncertain" | "different";
type Page = Taught & { rows: Suggestion[] };

const BATCH = 5; // suggestions of one fit: what was measured best

export const taught: Signal<Taught | null> = signal(null);
export const order: Signal<Order> = signal("mixed");
export const loading = signal(false); // suggestions
export const saving = signal(0); // marks that the server does not have yet
export const exhausted = signal(false);
export const hungry = signal(false); // the next suggestion is gone to as soon as it is here
export const grown: Signal<ReadonlyMap<string, readonly number[]>> = signal(new Map()); // held-out score as it grew
export const reasons: Signal<ReadonlyMap<number, Suggestion>> = signal(new Map());

/** Marks made here: class → row → mark. What rows bring along stands behind them. */
export const marks: Signal<ReadonlyMap<string, ReadonlyMap<number, Mark>>> = signal(new Map());

export const annotator = computed(() => settings.annotator.value.trim() || app.state.value?.user || "");
export const classes = computed<ClassInfo[]>(() => [...(app.state.value?.classes ?? [])].sort((a, b) => (a.name < b.name ? -1 : 1)));
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

/** After one step: each row's mark, and a row that had none stands as the server has it. */
function setLocals(step: Made[], of: (one: Made) => Mark | undefined): void {
  const name = step[0]?.name; // of a step all are of one class
  if (name === undefined) return;
  const rows = new Map(marks.peek().get(name));
  for (const one of step) {
    const given = of(one);
    if (given === undefined) rows.delete(one.row);
    else rows.set(one.row, given);
  }
  marks.value = new Map(marks.peek()).set(name, rows);
}

/** What the server says of classes becomes what the page shows. */
function take(answer: Taught): void {
  taught.value = answer;
  if (answer.warning) app.message.value = { kind: "error", words: answer.warning };
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
  if (hungry.peek() && found.length) app.current.value = found[0]!.row;
  hungry.value = false;
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
  if (!page) {
    hungry.value = false;
    return;
  }
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
  hungry.value = (inHand.peek()?.yes ?? 0) > 0;
  void reread();
  if (!hungry.value) return;
  void suggest(true);
  void measure(clean);
}

export function reorder(next: Order): void {
  order.value = next;
  hungry.value = true;
  if ((inHand.peek()?.yes ?? 0) > 0) void suggest(true);
}

/** Back to the suggestions from another list. */
export function resume(): void {
  const name = app.teaching.peek();
  if (name === null) return;
  hungry.value = true;
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
  hungry.value = next === undefined;
  if (next !== undefined) app.current.value = next;
}

/** To the row behind the one that was marked: in the list in hand, or else among suggestions, which
 * also follow the first example of a class. */
function advance(name: string, row: number, first: boolean): void {
  const list = app.list.peek();
  const at = first ? -1 : (list?.rows.indexOf(row) ?? -1);
  if (at >= 0) {
    const next = list!.rows.slice(at + 1).find((one) => !isMarked(name, one));
    if (next !== undefined) {
      app.current.value = next;
      return;
    }
  } else if (!first && list && !offering()) return; // a row from the map, beside a list of something else
  if (offered?.name === name) app.list.value = offered.list;
  goOn(name);
}

// Marks on their way.

interface Made {
  name: string;
  row: number;
  mark: Mark;
  before: Mark | undefined;
}

let made = 0; // marks of this page
const outbox: Made[] = [];
/** What the server takes back at once. renamed: a class, from and to. */
interface Step {
  marks: Made[];
  renamed?: [string, string];
}

const done: Step[] = [];
const undone: Step[] = [];
let sending: Promise<void> | null = null;

/** Once the server has all marks. */
async function settle(): Promise<void> {
  while (sending) await sending;
}

async function send(): Promise<void> {
  while (outbox.length) {
    const some = outbox.splice(0, 1); // alone, so that undo takes back one mark, however slow the server is
    const body = { class: some[0]!.name, marks: some.map(({ row, mark }) => ({ row, mark })), who: annotator.peek() };
    try {
      const answer = await post<Taught & { changed: boolean }>("/api/marks", body);
      take(answer);
      if (answer.changed) done.push({ marks: some }); // else it is no step to take back
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

/** Whether a mark would be for a row that is still on its way, and not for the one that is seen. */
export const tooEarly = computed(
  () => app.row.value?.row !== app.current.value || (hungry.value && currentMark.value !== "none"),
);

/** Mark the current row, and go on. The button of a mark that is there takes it away; a key never does. */
export function mark(given: Mark, byKey = false): void {
  const [name, row] = [app.teaching.peek(), app.current.peek()];
  if (name === null || row === null) {
    const words = row === null ? "Pick a row first: on the map, or in a list." : "Name a class first, in the panel Teach.";
    app.message.value = { kind: "error", words };
    return;
  }
  if (tooEarly.peek()) return;
  const same = currentMark.peek() === given;
  const first = given === "yes" && !inHand.peek()?.yes && !saving.peek();
  if (same && byKey) {
    advance(name, row, false);
    return;
  }
  const one: Made = { name, row, mark: same ? "none" : given, before: currentMark.peek() };
  setLocal(name, row, one.mark);
  undone.length = 0;
  outbox.push(one);
  made++;
  saving.value = outbox.length;
  if (!same) advance(name, row, first);
  deliver(name);
}

function deliver(name: string): void {
  sending ??= send().finally(() => {
    sending = null;
    after(name);
  });
}

/** Marks are kept: the next suggestions once all are answered, and how well the class is known now. */
function after(name: string): void {
  if (app.teaching.peek() !== name || !(inHand.peek()?.yes ?? 0)) return;
  if (!open(name).length && (offering() || hungry.peek())) void suggest(false);
  void measure(name);
}

/** This annotator's marks of the class in hand, as the server has them: another window or process
 * may have changed them. */
async function reread(): Promise<void> {
  const name = app.teaching.peek();
  if (name === null) return;
  await settle();
  const stood = made;
  const query = { class: name, who: annotator.peek() };
  const found = await get<{ rows: number[]; marks: Mark[] }>("/api/marks", query).catch(() => null); // it comes with the next change
  if (!found || app.teaching.peek() !== name || annotator.peek() !== query.who) return;
  if (stood !== made || sending) return reread();
  const next = new Map<number, Mark>([...(marks.peek().get(name)?.keys() ?? [])].map((row) => [row, "none"]));
  found.rows.forEach((row, i) => next.set(row, found.marks[i]!));
  marks.value = new Map(marks.peek()).set(name, next);
}

effect(() => {
  if (epoch.value > 0) void reread(); // others have changed something
});

let measuring = false;

/** What held-out marks tell, worked out for the marks that stand now; only once at a time. */
async function measure(name: string): Promise<void> {
  if (measuring) return;
  measuring = true;
  const stood = made;
  const query = { class: name, who: annotator.peek() };
  const answer = await get<Taught>("/api/taught", query).catch(() => null); // it comes again with the next mark
  measuring = false;
  if (app.teaching.peek() !== name) return;
  if (answer && stood === made) take(answer);
  else if (stood !== made && !sending) void measure(name);
}

const AT_ONCE = 10_000; // rows of a request

/** Mark many rows for the class in hand. */
export async function markRows(rows: number[], given: Mark): Promise<void> {
  const name = app.teaching.peek();
  if (name === null) return;
  await settle();
  for (let i = 0; i < rows.length; i += AT_ONCE) {
    const some = rows.slice(i, i + AT_ONCE);
    const sent = some.map((row) => ({ row, mark: given }));
    const answer = await post<Taught & { changed: boolean }>("/api/marks", { class: name, marks: sent, who: annotator.peek() });
    take(answer);
    const step = some.map((row) => ({ name, row, mark: given, before: marks.peek().get(name)?.get(row) }));
    setLocals(step, (one) => one.mark);
    if (answer.changed) done.push({ marks: step });
    undone.length = 0;
    made++;
  }
  after(name);
}

async function turnBack(path: "/api/undo" | "/api/redo", from: Step[], to: Step[]): Promise<void> {
  await settle();
  const answer = await attempt(() => post<Taught>(path, { who: annotator.peek() }));
  if (!answer) return;
  take(answer);
  const step = from.pop();
  if (step) {
    to.push(step);
    if (step.renamed) called(...(path === "/api/undo" ? ([step.renamed[1], step.renamed[0]] as const) : step.renamed));
    setLocals(step.marks, path === "/api/undo" ? (one) => one.before : (one) => one.mark);
    const [one] = step.marks;
    if (one && step.marks.length === 1 && app.teaching.peek() === one.name) app.current.value = one.row;
  }
  made++;
  void reread(); // the last step may have been another window's
  if (answer.name !== null && answer.name === app.teaching.peek()) void measure(answer.name);
  if (!answer.warning) app.message.value = { kind: "done", words: answer.words };
}

export const undo = () => turnBack("/api/undo", done, undone);
export const redo = () => turnBack("/api/redo", undone, done);

// Classes as a whole.

export async function rename(old: string, next: string): Promise<boolean> {
  await settle();
  const answer = await attempt(() => post<Taught>("/api/classes/rename", { old, new: next, who: annotator.peek() }));
  if (!answer) return false;
  undone.length = 0;
  take(answer);
  called(old, next);
  done.push({ marks: [], renamed: [old, next] });
  return true;
}

/** A class has another name: so have its marks, and the steps that lead to them. */
function called(old: string, next: string): void {
  const moved = new Map(marks.peek());
  moved.set(next, moved.get(old) ?? new Map());
  moved.delete(old);
  marks.value = moved;
  for (const { marks: some } of [...done, ...undone]) for (const one of some) if (one.name === old) one.name = next;
  if (app.teaching.peek() === old) teach(next);
}

export async function remove(name: string): Promise<boolean> {
  await settle();
  const answer = await attempt(() => post<Taught>("/api/classes/remove", { name, who: annotator.peek() }));
  if (!answer) return false;
  const left = new Map(marks.peek());
  const gone = [...(left.get(name) ?? [])];
  left.delete(name);
  undone.length = 0;
  done.push({ marks: gone.map(([row, before]) => ({ name, row, mark: "none", before })) });
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
