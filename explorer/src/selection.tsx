/** What can be done with the selected points. */

import { signal } from "@preact/signals";
import { app } from "./app";
import { attempt, download, post } from "./api";
import { CloseIcon, ListIcon } from "./icons";
import { markRows } from "./teaching";

const number = new Intl.NumberFormat("en");
const LISTED = 2000; // rows that a list takes
const FORMATS = [
  { format: "csv", name: "CSV", file: "selection.csv" },
  { format: "raven", name: "Raven", file: "selection.txt" },
  { format: "m3u", name: "M3U", file: "selection.m3u" },
  { format: "ids", name: "Ids", file: "ids.txt" },
] as const;

const named = signal("");
const busy = signal(false);

function rows(): number[] {
  return Array.from(app.selected.value);
}

/** Do something with the selection; buttons wait for it. */
async function doing(work: () => Promise<string>): Promise<void> {
  busy.value = true;
  const words = await attempt(work);
  busy.value = false;
  if (words) app.message.value = { kind: "done", words };
}

function keepIt(): Promise<void> {
  const name = named.value.trim();
  return doing(async () => {
    await post("/api/selections", { name, rows: rows() });
    named.value = "";
    return `Kept as “${name}”: ${number.format(app.selected.value.length)} rows. --where ${name} finds them on the command line.`;
  });
}

function exportIt(format: string, file: string): Promise<void> {
  return doing(async () => {
    const name = named.value.trim().replace(/[^\w.-]+/g, "-");
    await download("/api/export", { rows: rows(), format }, name ? `${name}-${file}` : file);
    return `${file} is with your downloads.`;
  });
}

function markAll(mark: "yes" | "no"): Promise<void> {
  const name = app.teaching.value;
  const chosen = rows();
  return doing(async () => {
    await markRows(chosen, mark);
    return `${number.format(chosen.length)} rows are marked ${mark} for ${name}.`;
  });
}

function listIt(): void {
  const all = rows();
  const some = all.slice(0, LISTED);
  app.list.value = {
    title: all.length > LISTED ? `Selection, the first ${number.format(LISTED)}` : "Selection",
    rows: some,
    notes: new Map(),
  };
}

export function dropSelection(): void {
  app.selected.value = new Uint32Array(0);
}

function Keep() {
  if (app.state.value?.read_only) return null;
  return (
    <form
      class="selection-group"
      onSubmit={(event) => {
        event.preventDefault();
        if (named.value.trim()) void keepIt();
      }}
    >
      <input
        class="field"
        data-testid="selection-name"
        aria-label="Name of the selection"
        placeholder="Name"
        value={named.value}
        onInput={(event) => (named.value = event.currentTarget.value)}
      />
      <button class="button" data-testid="selection-keep" disabled={busy.value || !named.value.trim()}>
        Keep
      </button>
    </form>
  );
}

function TeachAll() {
  const name = app.teaching.value;
  if (name === null || app.state.value?.read_only) return null;
  return (
    <div class="selection-group" role="group" aria-label={`Mark all for ${name}`}>
      <span class="soft clip selection-class">{name}</span>
      <button class="button" data-testid="selection-yes" disabled={busy.value} onClick={() => markAll("yes")}>
        Yes
      </button>
      <button class="button" data-testid="selection-no" disabled={busy.value} onClick={() => markAll("no")}>
        No
      </button>
    </div>
  );
}

export function SelectionBar() {
  const count = app.selected.value.length;
  return (
    <div class="selection-place" aria-live="polite">
      {count > 0 && (
        <div class="selection-bar" role="region" aria-label="Selection" data-testid="selection-bar">
          <strong data-testid="selection-count">
            {number.format(count)} <span class="selection-word">selected</span>
          </strong>
          <button class="button" data-testid="selection-list" onClick={listIt}>
            <ListIcon />
            List
          </button>
          <Keep />
          <div class="selection-group joined" role="group" aria-label="Export the selection">
            {FORMATS.map(({ format, name, file }) => (
              <button key={format} class="button" data-testid={`export-${format}`} title={`Export as ${name}`} disabled={busy.value} onClick={() => exportIt(format, file)}>
                {name}
              </button>
            ))}
          </div>
          <TeachAll />
          <button class="icon-button quiet" data-testid="selection-clear" aria-label="Drop the selection" title="Drop the selection (Esc)" onClick={dropSelection}>
            <CloseIcon />
          </button>
        </div>
      )}
    </div>
  );
}
