/** Teach a class: name it, mark rows, see how well it is known. */

import { useSignal } from "@preact/signals";
import { app } from "./app";
import { percent } from "./rows";
import { settings } from "./settings";
import {
  annotator, classes, currentMark, disagreements, exhausted, grown, inHand, loading, mark, order, reasons, redo,
  remove, rename, reorder, resume, saving, scoreColumn, taught, teach, tooEarly, undo, type Order,
} from "./teaching";
import type { ClassInfo, Mark, Suggestion } from "./types";

function Choose() {
  const name = useSignal("");
  const submit = (event: Event) => {
    event.preventDefault();
    teach(name.value);
    name.value = "";
    if (document.activeElement instanceof HTMLElement) document.activeElement.blur(); // y, n and u are marks now
  };
  return (
    <form class="choose" onSubmit={submit}>
      <input
        class="field"
        data-testid="teach-class"
        aria-label="Name of a class to teach"
        placeholder="Name of a class"
        list="taught-classes"
        autocomplete="off"
        maxLength={200}
        value={name}
        onInput={(event) => (name.value = event.currentTarget.value)}
      />
      <datalist id="taught-classes">
        {classes.value.map((one) => <option key={one.name} value={one.name} />)}
      </datalist>
      <button type="submit" class="button primary" data-testid="teach-go" disabled={!name.value.trim()}>Teach</button>
    </form>
  );
}

const MARKS: [Mark, string, string, string][] = [
  ["yes", "Yes", "y", "M5 12.5l4.5 4.5L19 7.5"],
  ["no", "No", "n", "M6.5 6.5l11 11M17.5 6.5l-11 11"],
  ["unsure", "Unsure", "u", "M8.5 9a3.5 3.5 0 1 1 5 3.2c-1 .5-1.5 1.1-1.5 2.3M12 18v.1"],
];

export function MarkIcon({ of, hidden = false }: { of: Mark; hidden?: boolean }) {
  const found = MARKS.find(([name]) => name === of);
  return found ? (
    <svg class={`mark-icon ${of}`} viewBox="0 0 24 24" role="img" aria-label={hidden ? undefined : found[1]} aria-hidden={hidden}><path d={found[3]} /></svg>
  ) : null;
}

/** The three marks. name: what their test ids begin with. */
export function MarkButtons({ name: prefix }: { name: string }) {
  const off = app.current.value === null || app.teaching.value === null || app.state.value?.read_only;
  return (
    <div class="mark-buttons" role="group" aria-label={`Is the current row ${app.teaching.value ?? "of the class"}?`}>
      {MARKS.map(([name, words, key]) => (
        <button
          key={name}
          type="button"
          class={`mark-button ${name}`}
          data-testid={`${prefix}-${name}`}
          aria-pressed={currentMark.value === name}
          aria-keyshortcuts={key}
          disabled={off}
          aria-disabled={tooEarly.value}
          onClick={() => mark(name)}
        >
          <MarkIcon of={name} hidden />
          <span class="mark-words">{words}</span>
          <kbd class="kbd" aria-hidden="true">{key}</kbd>
        </button>
      ))}
    </div>
  );
}

const REASONS: Record<Suggestion["reason"], string> = {
  likely: "Suggested as likely",
  uncertain: "Suggested as uncertain: its mark tells most",
  different: "Suggested as different from what is marked",
};

/** Why this row is asked about, or what to do where none is. One line in every state. */
function Reason() {
  const row = app.current.value;
  const why = row === null ? undefined : reasons.value.get(row);
  const probability = why?.probability;
  let words = "";
  if (app.state.value?.read_only) words = "The collection is opened for reading only: no marks.";
  else if (!inHand.value?.yes) words = "Pick a row that is of this class, and mark it “yes”. Suggestions follow.";
  else if (loading.value) words = "All rows are scored…";
  else if (exhausted.value) words = "No more suggestions: try another order.";
  else if (why) {
    words = REASONS[why.reason] + (probability != null ? `, ${percent(probability)} probable` : `, score ${why.score.toFixed(2)}`);
  } else words = "This row was not suggested; marks count all the same.";
  return <p class="reason" data-testid="suggestion-reason" aria-live="polite">{words}</p>;
}

function Counts({ of }: { of: ClassInfo | null }) {
  return (
    <p class="counts" data-testid="counts">
      <span class="yes"><b>{of?.yes ?? 0}</b> yes</span>
      <span class="no"><b>{of?.no ?? 0}</b> no</span>
      <span class="unsure"><b>{of?.unsure ?? 0}</b> unsure</span>
      {saving.value > 0 && <span class="soft">saving…</span>}
    </p>
  );
}

/** The held-out score from 0 to 1: how it grew, its interval, where it stands. */
function Score({ name }: { name: string }) {
  const held = taught.value?.held_out;
  const score = held?.average_precision ?? null;
  const history = grown.value.get(name) ?? [];
  const points = history.map((v, i) => `${(100 * i) / Math.max(1, history.length - 1)},${30 - 28 * v}`);
  const x = (value: number) => `${100 * Math.max(0, Math.min(1, value))}%`;
  return (
    <div class="held-out" data-testid="held-out" data-score={score ?? ""}>
      <div class="held-out-words">
        <span class="label">Average precision, held out</span>
        <strong>{score === null ? "–" : score.toFixed(2)}</strong>
        {score !== null && held?.low != null && held.high != null && (
          <span class="soft">{`${held.low.toFixed(2)}–${held.high.toFixed(2)}`}</span>
        )}
      </div>
      <svg class="interval" aria-hidden="true">
        <line class="whole" x1="0" x2="100%" y1="6" y2="6" />
        {score !== null && held?.low != null && held.high != null && (
          <line class="range" x1={x(held.low)} x2={x(held.high)} y1="6" y2="6" />
        )}
        {score !== null && <circle cx={x(score)} cy="6" r="4" />}
      </svg>
      {points.length > 1 && (
        <svg class="growth" viewBox="0 0 100 32" preserveAspectRatio="none" aria-hidden="true">
          <polyline points={points.join(" ")} />
        </svg>
      )}
      <p class="soft small">
        {held?.words || (score === null ? "Comes with a few more examples of yes and of no." : `${held?.examples} examples`)}
      </p>
    </div>
  );
}

function Known({ name }: { name: string }) {
  const expected = taught.value?.expected ?? null;
  const column = scoreColumn(name);
  const before = useSignal(app.colour.peek());
  const shown = app.colour.value?.id === column.id;
  const change = () => {
    if (shown) app.colour.value = before.value?.id === column.id ? null : before.value;
    else {
      before.value = app.colour.value;
      app.colour.value = column;
    }
  };
  return (
    <div class="known">
      <Score name={name} />
      <p data-testid="expected" title="The sum of calibrated probabilities over all rows">
        <span class="label">Expected rows</span>
        <strong>{expected === null ? "–" : `≈ ${Math.round(expected).toLocaleString("en")}`}</strong>
      </p>
      <label class="check">
        <input type="checkbox" data-testid="on-map" checked={shown} disabled={!inHand.value?.yes} onChange={change} />
        <span>Show on the map</span>
      </label>
    </div>
  );
}

const ORDERS: [Order, string][] = [["mixed", "mixed"], ["likely", "most likely"], ["uncertain", "most uncertain"], ["different", "most different"]];

function Undo() {
  return (
    <>
      <button type="button" class="button" data-testid="undo" aria-keyshortcuts="z" disabled={taught.value?.can_undo === false} onClick={() => void undo()}>
        Undo
      </button>
      <button type="button" class="button" data-testid="redo" aria-keyshortcuts="Shift+Z" disabled={!taught.value?.can_redo} onClick={() => void redo()}>
        Redo
      </button>
    </>
  );
}

function InHand({ name }: { name: string }) {
  return (
    <div class="in-hand">
      <div class="in-hand-head">
        <h3 class="clip" title={name}>{name}</h3>
        <Counts of={inHand.value} />
      </div>
      <MarkButtons name="mark" />
      <Reason />
      <div class="teach-tools">
        <label class="labelled">
          <span class="label">Next, the</span>
          <select
            class="field"
            data-testid="order"
            value={order.value}
            onChange={(event) => reorder(event.currentTarget.value as Order)}
          >
            {ORDERS.map(([value, words]) => <option key={value} value={value}>{words}</option>)}
          </select>
        </label>
        <button type="button" class="button" data-testid="suggest" disabled={!inHand.value?.yes} onClick={resume}>
          Suggestions
        </button>
        <Undo />
      </div>
      <Known name={name} />
    </div>
  );
}

function Rename({ one, end }: { one: ClassInfo; end: () => void }) {
  const next = useSignal(one.name);
  const submit = async (event: Event) => {
    event.preventDefault();
    const name = next.value.trim();
    if (!name || name === one.name || (await rename(one.name, name))) end();
  };
  const taken = classes.value.some((other) => other.name === next.value.trim() && other.name !== one.name);
  return (
    <form class="class-form" onSubmit={(event) => void submit(event)}>
      <input
        class="field"
        aria-label={`New name of ${one.name}`}
        data-testid="class-new-name"
        ref={(input) => void input?.focus()}
        value={next}
        onInput={(event) => (next.value = event.currentTarget.value)}
        onKeyDown={(event) => event.key === "Escape" && end()}
      />
      <button type="submit" class="button primary" data-testid="class-rename-go" disabled={taken} title={taken ? "There is a class of this name" : undefined}>Rename</button>
      <button type="button" class="button quiet" onClick={end}>Cancel</button>
    </form>
  );
}

function Remove({ one, end }: { one: ClassInfo; end: () => void }) {
  const go = async () => {
    if (await remove(one.name)) end();
  };
  return (
    <div class="class-form" role="alertdialog" aria-label={`Remove ${one.name}?`}>
      <span class="clip">{`Remove “${one.name}” and its marks?`}</span>
      <button type="button" class="button danger" data-testid="class-remove-go" onClick={() => void go()}>Remove</button>
      <button type="button" class="button quiet" data-testid="class-remove-cancel" ref={(button) => void button?.focus()} onClick={end}>
        Cancel
      </button>
    </div>
  );
}

function Class({ one }: { one: ClassInfo }) {
  const form = useSignal<"rename" | "remove" | null>(null);
  const end = () => (form.value = null);
  const fixed = app.state.value?.read_only;
  return (
    <li class="class" data-testid="class" data-name={one.name}>
      {form.value === "rename" && <Rename one={one} end={end} />}
      {form.value === "remove" && <Remove one={one} end={end} />}
      {form.value === null && (
        <>
          <button
            type="button"
            class="class-name"
            data-testid="class-teach"
            aria-pressed={app.teaching.value === one.name}
            onClick={() => teach(one.name)}
          >
            <span class="clip">{one.name}</span>
            <span class="class-counts">
              <span class="yes" title="yes">{one.yes}</span>
              <span class="no" title="no">{one.no}</span>
              <span class="unsure" title="unsure">{one.unsure}</span>
            </span>
          </button>
          <button type="button" class="icon-button quiet" data-testid="class-rename" aria-label={`Rename ${one.name}`} title="Rename" disabled={fixed} onClick={() => (form.value = "rename")}>
            <svg viewBox="0 0 24 24" aria-hidden="true"><path d="M4 20l1-4L16 5l3 3L8 19z" /></svg>
          </button>
          <button type="button" class="icon-button quiet" data-testid="class-remove" aria-label={`Remove ${one.name}`} title="Remove" disabled={fixed} onClick={() => (form.value = "remove")}>
            <svg viewBox="0 0 24 24" aria-hidden="true"><path d="M5 7h14M10 7V5h4v2M7 7l1 12h8l1-12" /></svg>
          </button>
        </>
      )}
    </li>
  );
}

function Classes() {
  if (!classes.value.length) {
    return <p class="nothing" data-testid="classes">No class is taught yet. Name one, then mark a row with “yes”.</p>;
  }
  return (
    <ul class="classes" data-testid="classes" aria-label="Taught classes">
      {classes.value.map((one) => <Class key={one.name} one={one} />)}
    </ul>
  );
}

export function Teach() {
  const name = app.teaching.value;
  return (
    <section class="teach-panel" aria-label="Teach" data-testid="teach">
      <Choose />
      {name !== null && <InHand name={name} />}
      <Classes />
      {name === null && taught.value && (
        <div class="teach-tools">
          <Undo />
        </div>
      )}
      <div class="teach-foot">
        <label class="labelled">
          <span class="label">Marks are by</span>
          <input
            class="field"
            data-testid="annotator"
            autocomplete="off"
            maxLength={100}
            placeholder={app.state.value?.user ?? ""}
            value={annotator.value}
            onChange={(event) => (settings.annotator.value = event.currentTarget.value.trim())}
          />
        </label>
        <button type="button" class="button" data-testid="disagreements" onClick={() => void disagreements()}>
          Disagreements
        </button>
      </div>
    </section>
  );
}
