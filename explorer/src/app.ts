/** What all parts of the page share: signals that they read, and actions that change them. */

import { signal, type Signal } from "@preact/signals";
import type { Column, Hit, Row, RowShort, State } from "./types";

export interface Points {
  rows: Uint32Array;
  x: Float32Array;
  y: Float32Array;
}

/** Rows listed beside the map, to listen through. title: where they come from. */
export interface List {
  title: string;
  rows: number[];
  notes: Map<number, string>; // beside a row: its similarity, why it is suggested
}

export interface App {
  state: Signal<State | null>;
  points: Signal<Points | null>;
  colour: Signal<Column | null>;
  current: Signal<number | null>; // the row that is shown and heard
  row: Signal<Row | null>; // of `current`, once it is here
  list: Signal<List | null>;
  selected: Signal<Uint32Array>; // rows
  teaching: Signal<string | null>; // the class in hand
  likes: Signal<number[]>; // rows of "more like these"
  dislikes: Signal<number[]>;
  message: Signal<{ kind: "error" | "done"; words: string } | null>;
  theme: Signal<"light" | "dark">;
  tool: Signal<"colours" | "search" | "teach">; // the panel that is open beside the map
}

export const app: App = {
  state: signal(null),
  points: signal(null),
  colour: signal(null),
  current: signal(null),
  row: signal(null),
  list: signal(null),
  selected: signal(new Uint32Array(0)),
  teaching: signal(null),
  likes: signal([]),
  dislikes: signal([]),
  message: signal(null),
  theme: signal("light"),
  tool: signal("colours"),
};

/** A key of the keyboard and what it does; `?` lists all that were added. */
export interface Shortcut {
  key: string; // as KeyboardEvent.key, or with "Shift+", "Ctrl+"
  words: string;
  group: "Map" | "Listen" | "List" | "Search" | "Teach" | "Page";
  run: () => void;
}

export const shortcuts: Shortcut[] = [];

/** Each key does one thing, wherever the focus is. */
export function shortcut(one: Shortcut): void {
  if (shortcuts.some((each) => each.key === one.key)) throw new Error(`two things for ${one.key}`);
  shortcuts.push(one);
}

export type { Hit, RowShort };
