/** What colours mean; which values are shown; names of clusters; kept selections. */

import { signal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { app } from "./app";
import { attempt, get, post } from "./api";
import { colourBy, colouring, entryColours, filtering, NONE, showAll, shownCodes, shownRange } from "./colours";
import { CloseIcon, PenIcon } from "./icons";
import { css, scale, type Rgb } from "./palette";
import type { Clustering, Legend } from "./types";

const number = new Intl.NumberFormat("en");
const AT_FIRST = 200; // entries that are listed before one asks for more

const sought = signal("");
const whole = signal(false);
const renaming = signal<number | null>(null);

/** Values are colours' categories, or a scale of numbers and dates. */
export function ColourBy() {
  const state = app.state.value;
  return (
    <div class="colour-by">
      <label class="label" for="colour-by">
        Colour by
      </label>
      <select
        id="colour-by"
        class="field"
        data-testid="colour-by"
        value={app.colour.value?.id ?? ""}
        onChange={(event) => {
          sought.value = "";
          whole.value = false;
          const id = event.currentTarget.value;
          colourBy(state?.columns.find((column) => column.id === id) ?? null);
        }}
      >
        {state?.columns.map((column) => (
          <option key={column.id} value={column.id}>
            {column.title}
          </option>
        ))}
        <option value="">One colour</option>
      </select>
    </div>
  );
}

function toggle(code: number): void {
  const next = new Set(shownCodes.value);
  if (!next.delete(code)) next.add(code);
  shownCodes.value = next;
}

/** The clustering whose numbers colour the map, if it is one. */
function clustering(legend: Legend): Clustering | null {
  const all = app.state.value?.clusterings ?? [];
  return all.find((one) => [one.name, `cluster:${one.name}`, `clusters:${one.name}`].includes(legend.by)) ?? null;
}

function Rename({ of, code, name }: { of: Clustering; code: number; name: string }) {
  const field = useRef<HTMLInputElement>(null);
  useEffect(() => field.current?.select(), []);
  const done = async () => {
    const next = field.current?.value.trim() ?? "";
    renaming.value = null;
    if (next && next !== name) {
      await attempt(() => post("/api/clusters/rename", { clustering: of.name, number: code, name: next }));
    }
  };
  return (
    <form
      class="rename"
      onSubmit={(event) => {
        event.preventDefault();
        void done();
      }}
    >
      <input
        ref={field}
        class="field"
        data-testid="cluster-rename-name"
        aria-label={`Name of ${name}`}
        defaultValue={name}
        onBlur={done}
        onKeyDown={(event) => event.key === "Escape" && (renaming.value = null)}
      />
    </form>
  );
}

interface EntryProps {
  code: number;
  name: string;
  count: number;
  colour: Rgb | null;
  of: Clustering | null;
}

function Entry({ code, name, count, colour, of }: EntryProps) {
  const chosen = shownCodes.value;
  const on = chosen.size === 0 || chosen.has(code);
  if (of && renaming.value === code) return <Rename of={of} code={code} name={name} />;
  return (
    <li class={on ? "legend-line" : "legend-line off"}>
      <button
        class="legend-entry"
        data-testid="legend-entry"
        data-name={name}
        data-code={Number.isNaN(code) ? "none" : code}
        data-count={count}
        aria-pressed={chosen.has(code)}
        title={name}
        onClick={() => toggle(code)}
      >
        <i class="dot" ref={(dot) => dot?.style.setProperty("background", colour ? css(colour) : "var(--map-none)")} />
        <span class="clip">{name}</span>
        <span class="legend-count">{number.format(count)}</span>
      </button>
      {of && code >= 0 && !app.state.value?.read_only && (
        <button class="icon-button quiet legend-pen" data-testid="cluster-rename" aria-label={`Rename ${name}`} onClick={() => (renaming.value = code)}>
          <PenIcon />
        </button>
      )}
    </li>
  );
}

function Categories({ legend }: { legend: Legend }) {
  const colours = entryColours(legend);
  const of = clustering(legend);
  const words = sought.value.toLowerCase();
  const all = words ? legend.entries.filter((entry) => entry.name.toLowerCase().includes(words)) : legend.entries;
  const listed = whole.value ? all : all.slice(0, AT_FIRST);
  return (
    <>
      {legend.entries.length > 14 && (
        <input
          class="field legend-find"
          type="search"
          data-testid="legend-find"
          aria-label={`Find among ${legend.title}`}
          placeholder={`Find among ${number.format(legend.entries.length)}`}
          value={sought.value}
          onInput={(event) => (sought.value = event.currentTarget.value)}
        />
      )}
      <ul class="legend-entries">
        {listed.map((entry) => (
          <Entry key={entry.code} {...entry} colour={colours.get(entry.code) ?? null} of={of} />
        ))}
        {legend.none > 0 && !words && <Entry code={NONE} name="none" count={legend.none} colour={null} of={null} />}
      </ul>
      {listed.length < all.length && (
        <button class="button quiet" onClick={() => (whole.value = true)}>
          Show {number.format(all.length - listed.length)} more
        </button>
      )}
      {all.length === 0 && <p class="soft small">None is named so.</p>}
    </>
  );
}

function written(legend: Legend, at: number): string {
  const [low, high] = [legend.low ?? 0, legend.high ?? 1];
  const value = low + (high - low) * at;
  if (legend.kind === "date") return new Date(1000 * value).toISOString().slice(0, high - low < 172_800 ? 16 : 10).replace("T", " ");
  return Math.abs(value) >= 1e5 ? value.toExponential(2) : String(Number(value.toPrecision(3)));
}

function Gradient() {
  const theme = app.theme.value;
  const bar = useRef<HTMLDivElement>(null);
  useEffect(() => {
    const stops = Array.from({ length: 17 }, (_, i) => css(scale(i / 16, theme)));
    if (bar.current) bar.current.style.background = `linear-gradient(90deg, ${stops.join(", ")})`;
  }, [theme]);
  return <div ref={bar} class="gradient" />;
}

function Range({ legend }: { legend: Legend }) {
  const [from, to] = shownRange.value;
  if (legend.low === null || legend.high === null) return <p class="soft small">No point has a value.</p>;
  const thumb = (which: 0 | 1, words: string) => (
    <input
      type="range"
      min="0"
      max="1"
      step="0.005"
      data-testid={which ? "range-high" : "range-low"}
      aria-label={`${words} ${legend.title} shown`}
      aria-valuetext={written(legend, shownRange.value[which])}
      value={shownRange.value[which]}
      onInput={(event) => {
        const value = Number(event.currentTarget.value);
        shownRange.value = which ? [Math.min(from, value), value] : [value, Math.max(to, value)];
      }}
    />
  );
  return (
    <div class="scale">
      <Gradient />
      <div class="scale-thumbs">
        {thumb(0, "Lowest")}
        {thumb(1, "Highest")}
      </div>
      <div class="scale-ends">
        <span data-testid="legend-low">{written(legend, from)}</span>
        <span data-testid="legend-high">{written(legend, to)}</span>
      </div>
      {legend.none > 0 && (
        <p class="scale-none small soft">
          <i class="dot" />
          {number.format(legend.none)} without a value
        </p>
      )}
    </div>
  );
}

export function LegendPanel() {
  const colours = colouring.value;
  const state = app.state.value;
  if (!state) return <Waiting />;
  const legend = colours?.legend ?? null;
  return (
    <div class="legend-panel">
      <ColourBy />
      <section data-testid="legend" aria-label={legend ? `Legend: ${legend.title}` : "Legend"} data-by={legend?.by ?? ""}>
        {legend && (
          <header class="legend-head">
            <span class="soft small">
              {legend.kind === "category" ? `${number.format(legend.entries.length)} ${legend.entries.length === 1 ? "value" : "values"}` : legend.kind === "date" ? "Dates" : "Numbers"}
            </span>
            <button class="link" data-testid="legend-all" disabled={!filtering.value} onClick={showAll}>
              Show all
            </button>
          </header>
        )}
        {legend && (legend.kind === "category" ? <Categories legend={legend} /> : <Range legend={legend} />)}
        {!legend && app.colour.value && <Waiting />}
      </section>
      <Clusterings legend={legend} />
      <Selections />
    </div>
  );
}

/** Clusterings that do not colour the map now. */
function Clusterings({ legend }: { legend: Legend | null }) {
  const state = app.state.value;
  const shown = legend ? clustering(legend)?.name : null;
  const others = state?.clusterings.filter((one) => one.name !== shown) ?? [];
  if (!others.length) return null;
  return (
    <section class="side-section">
      <h3 class="panel-title">Clusters</h3>
      <ul>
        {others.map((one) => {
          const column = state?.columns.find((each) => [one.name, `cluster:${one.name}`, `clusters:${one.name}`].includes(each.id));
          return (
            <li key={one.name} class="legend-line">
              <button class="legend-entry" data-testid="clustering" data-name={one.name} disabled={!column} onClick={() => column && colourBy(column)}>
                <span class="clip">{one.name}</span>
                <span class="legend-count">{number.format(one.clusters.length)} clusters</span>
              </button>
            </li>
          );
        })}
      </ul>
    </section>
  );
}

async function take(name: string): Promise<void> {
  const answer = await attempt(() => get<{ rows: number[] }>("/api/selections/rows", { name }));
  if (answer) app.selected.value = Uint32Array.from(answer.rows);
}

async function remove(name: string): Promise<void> {
  const done = await attempt(() => post("/api/selections/remove", { name }));
  if (done) app.message.value = { kind: "done", words: `The selection “${name}” is removed; its rows stay.` };
}

function Selections() {
  const kept = app.state.value?.selections ?? [];
  if (!kept.length) return null;
  return (
    <section class="side-section">
      <h3 class="panel-title">Kept selections</h3>
      <ul>
        {kept.map(({ name, rows }) => (
          <li key={name} class="legend-line">
            <button class="legend-entry" data-testid="kept-selection" data-name={name} title={`Select the rows of ${name}`} onClick={() => take(name)}>
              <span class="clip">{name}</span>
              <span class="legend-count">{number.format(rows)}</span>
            </button>
            {!app.state.value?.read_only && (
              <button class="icon-button quiet legend-pen" data-testid="kept-selection-remove" aria-label={`Remove the selection ${name}`} onClick={() => remove(name)}>
                <CloseIcon />
              </button>
            )}
          </li>
        ))}
      </ul>
    </section>
  );
}

function Waiting() {
  return (
    <div class="legend-waiting" aria-hidden="true">
      {[82, 64, 71, 55, 78, 49, 66, 58].map((wide) => (
        <div key={wide} class="skeleton" ref={(line) => line?.style.setProperty("width", `${wide}%`)} />
      ))}
    </div>
  );
}
