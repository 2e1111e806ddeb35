/** How this browser shows and plays: kept in it. */

import { effect, signal, type Signal } from "@preact/signals";
import type { Palette, Scale } from "./spectrum";

export const SPEEDS = [0.1, 0.2, 0.25, 0.5, 0.75, 1, 1.5, 2];
export const CONTEXTS = [0, 0.5, 1, 2, 5];
export const WINDOWS = [128, 256, 512, 1024, 2048, 4096];

export const settings = {
  playAtOnce: signal(true),
  loop: signal(false),
  speed: signal(1),
  pitch: signal<"kept" | "falls">("kept"),
  context: signal(0), // seconds before and after
  scale: signal<Scale>("linear"),
  low: signal<number | null>(null), // Hz
  high: signal<number | null>(null),
  window: signal(0), // samples; 0 is what suits the rate
  contrast: signal(0.4),
  palette: signal<Palette>("magma"),
  drawing: signal(false), // whether the controls of the spectrogram are open
  annotator: signal(""),
};

const PLACE = "penult.settings";

function read(): Record<string, unknown> {
  try {
    return JSON.parse(localStorage.getItem(PLACE) ?? "{}") as Record<string, unknown>;
  } catch {
    return {}; // a browser that keeps nothing
  }
}

const before = read();
for (const [name, one] of Object.entries(settings) as [string, Signal<unknown>][]) {
  const value = before[name];
  if (value !== undefined && (one.peek() === null || typeof value === typeof one.peek())) {
    one.value = value;
  }
}

effect(() => {
  const values = Object.fromEntries(Object.entries(settings).map(([name, one]) => [name, one.value]));
  try {
    localStorage.setItem(PLACE, JSON.stringify(values));
  } catch {
    // a browser that keeps nothing: they last as long as the page
  }
});
