/** What points are coloured by, and which of them are shown. */

import { batch, computed, signal } from "@preact/signals";
import { app } from "./app";
import { attempt, bytes, get } from "./api";
import { category, packed, scale, type Rgb } from "./palette";
import { keep } from "./theme";
import type { Column, Legend } from "./types";

export const NONE = Number.NaN; // the code of points without a value

export interface Colouring {
  legend: Legend;
  values: Float32Array; // of the points, in their order
}

export const colouring = signal<Colouring | null>(null);

/** Codes that are shown, of a category; empty: all. */
export const shownCodes = signal<ReadonlySet<number>>(new Set());
/** The part of a number's range that is shown, from 0 to 1. */
export const shownRange = signal<readonly [number, number]>([0, 1]);

/** Whether some points are left out by the legend. */
export const filtering = computed(
  () => shownCodes.value.size > 0 || shownRange.value[0] > 0 || shownRange.value[1] < 1,
);

export function showAll(): void {
  batch(() => {
    shownCodes.value = new Set();
    shownRange.value = [0, 1];
  });
}

export function colourBy(column: Column | null): void {
  if (column?.id === app.colour.value?.id) return;
  app.colour.value = column;
  keep("penult.colour", column?.id ?? "");
}

/** Ask for the legend and values of a column, whole before anything is shown of them. */
export async function askColouring(column: Column | null): Promise<Colouring | null> {
  if (!column) return null;
  const query = new URLSearchParams({ by: column.id });
  return attempt(async () => {
    const [legend, values] = await Promise.all([
      get<Legend>("/api/legend", { by: column.id }),
      bytes(`/api/values?${query}`),
    ]);
    return { legend, values: new Float32Array(values) };
  });
}

export function setColouring(next: Colouring | null): void {
  batch(() => {
    if (colouring.value?.legend.by !== next?.legend.by) showAll();
    colouring.value = next;
  });
}

/** Where a number stands between the lowest and the highest, from 0 to 1. */
export function share(value: number, legend: Legend): number {
  const [low, high] = [legend.low ?? 0, legend.high ?? 1];
  return high > low ? Math.min(1, Math.max(0, (value - low) / (high - low))) : 0.5;
}

/** Whether the legend leaves a point with this value in. */
export function shows(legend: Legend, value: number): boolean {
  if (legend.kind === "category") {
    return shownCodes.value.size === 0 || shownCodes.value.has(value);
  }
  const [from, to] = shownRange.value;
  if (from <= 0 && to >= 1) return true;
  const at = share(value, legend);
  return value === value && at >= from && at <= to;
}

/** Colours of the legend's entries, by code; codes below 0 (the noise between clusters) have none. */
export function entryColours(legend: Legend): Map<number, Rgb> {
  const entries = legend.entries.filter((entry) => entry.code >= 0);
  return new Map(entries.map((entry, rank) => [entry.code, category(rank, app.theme.value)]));
}

/** A function from a value to its colour, packed. none: of points without a value. */
export function painter(legend: Legend, none: number): (value: number) => number {
  if (legend.kind === "category") {
    const colours: number[] = [];
    for (const [code, colour] of entryColours(legend)) colours[code] = packed(colour);
    return (value) => colours[value] ?? none;
  }
  const steps = Array.from({ length: 256 }, (_, i) => packed(scale(i / 255, app.theme.value)));
  return (value) => (value === value ? steps[Math.round(255 * share(value, legend))] : none);
}
