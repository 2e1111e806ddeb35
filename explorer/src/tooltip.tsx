/** What the point under the pointer is. */

import { signal } from "@preact/signals";
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import { app } from "./app";
import { get } from "./api";
import { chart, frames, hovered } from "./chart";
import { colouring } from "./colours";
import { keepShort, prefetch } from "./rows";
import type { RowShort } from "./types";

const WAIT = 40; // ms that the pointer rests before the row is asked for
const MOST = 3000;

const rows = new Map<number, RowShort>();
const shown = signal<RowShort | null>(null);

async function look(row: number, version: number): Promise<void> {
  if (!rows.has(row)) {
    const answer = await get<{ rows: RowShort[] }>("/api/rows", { rows: row }).catch(() => null);
    if (!answer?.rows[0] || version !== app.state.peek()?.version) return;
    if (rows.size > MOST) rows.clear();
    rows.set(row, answer.rows[0]);
    keepShort(answer.rows);
  }
  if (hovered.peek() < 0 || app.points.peek()?.rows[hovered.peek()] !== row) return;
  shown.value = rows.get(row) ?? null;
  void prefetch(row); // a click may follow
}

function span(one: RowShort): string {
  if (one.start === null) return one.region === "whole" ? "" : one.region;
  return `${one.start.toFixed(2)} – ${one.end === null ? "end" : one.end.toFixed(2)} s`;
}

/** The value that colours the point, in words. */
function value(point: number): { title: string; text: string } | null {
  const colours = colouring.value;
  if (!colours || colours.legend.by === "label") return null;
  const one = colours.values[point];
  const { legend } = colours;
  if (one !== one || one === undefined) return null;
  const text =
    legend.kind === "category"
      ? (legend.entries.find((entry) => entry.code === one)?.name ?? "")
      : legend.kind === "date"
        ? new Date(1000 * one).toISOString().slice(0, 10)
        : String(Number(one.toPrecision(4)));
  return { title: legend.title, text };
}

export function Tooltip() {
  const box = useRef<HTMLDivElement>(null);
  const point = hovered.value;
  const version = app.state.value?.version ?? 0;
  useEffect(() => rows.clear(), [version, app.state.value?.session]);
  useEffect(() => {
    shown.value = null;
    const row = app.points.peek()?.rows[point];
    if (row === undefined) return;
    if (rows.has(row)) return void look(row, version);
    const timer = setTimeout(() => look(row, version), WAIT);
    return () => clearTimeout(timer);
  }, [point, version]);
  const one = shown.value;
  useLayoutEffect(() => {
    const [at, element] = [chart.peek(), box.current];
    if (!at || !element || point < 0) return;
    const [x, y] = at.screen(point);
    const gap = at.size() / 2 + 10;
    const left = Math.max(8, Math.min(at.camera.width - element.offsetWidth - 8, x - element.offsetWidth / 2));
    const above = y - gap - element.offsetHeight;
    element.style.transform = `translate(${Math.round(left)}px, ${Math.round(above > 8 ? above : y + gap)}px)`;
  }, [point, one, point >= 0 ? frames.value : 0]);
  if (point < 0 || !one) return null;
  const other = value(point);
  return (
    <div ref={box} class="map-tooltip" role="tooltip" data-testid="map-tooltip" data-row={one.row}>
      <strong>{one.id}</strong>
      {span(one) && <span class="soft">{span(one)}</span>}
      {one.text && <q>{one.text.slice(0, 140)}</q>}
      {one.label !== null && (
        <span class="map-tooltip-pair">
          <span>{one.label}</span>
          {one.score !== null && <span class="soft">{one.score.toFixed(3)}</span>}
        </span>
      )}
      {other && (
        <span class="map-tooltip-pair">
          <span class="soft">{other.title}</span>
          <span>{other.text}</span>
        </span>
      )}
    </div>
  );
}
