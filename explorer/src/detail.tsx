/** The current row: seen, heard, and what is known of it. */

import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { get } from "./api";
import { app } from "./app";
import { Frames, Picture, Text } from "./picture";
import { Player } from "./player";
import { Thumb, Words } from "./results";
import { epoch, keepShort, nameOf, percent, prefetch, shorts, wantShort, whereOf } from "./rows";
import { MarkButtons, MarkIcon } from "./teach";
import type { Hit, Mark, Row } from "./types";

const FEW = 5; // scores that are shown at first

function Media({ row }: { row: Row }) {
  const { media } = row;
  if (media.kind === "audio") return <Player row={row} />;
  if (media.error) return <p class="trouble" role="status" data-testid="media-error">{media.error}</p>;
  if (media.kind === "image") return <Picture row={row} />;
  return media.kind === "video" ? <Frames row={row} /> : <Text row={row} />;
}

async function copy(text: string): Promise<void> {
  try {
    await navigator.clipboard.writeText(text);
    app.message.value = { kind: "done", words: `Copied: ${text}` };
  } catch {
    app.message.value = { kind: "error", words: `The browser does not copy for this page. The key is: ${text}` };
  }
}

function Head({ row }: { row: Row }) {
  const where = whereOf(row);
  const channel = row.channel === null ? "" : `channel ${row.channel}`;
  const rate = row.media.rate ? `${Number((row.media.rate / 1000).toFixed(3))} kHz` : "";
  const cut = row.truncated ? `cut by ${percent(row.truncated)}` : "";
  return (
    <header class="detail-head">
      <div class="detail-title">
        <h2 class="clip" data-testid="row-label" title={row.label ?? undefined}>{row.label ?? nameOf(row.id)}</h2>
        {row.score !== null && row.label !== null && <span class="score-of" data-testid="row-score">{row.score.toFixed(2)}</span>}
        {row.label !== null && <span class="soft small">by the classifier</span>}
      </div>
      <div class="detail-where">
        <span class="clip" data-testid="row-id" title={row.id}>{row.id}</span>
        <button type="button" class="link" data-testid="copy-key" onClick={() => void copy(`${row.id}\t${row.region}`)}>Copy key</button>
      </div>
      <p class="soft small clip">{[where, channel, rate, cut].filter(Boolean).join(" · ") || " "}</p>
    </header>
  );
}

/** Marks for the class in hand, where the panel that teaches is not in view. */
function Marks() {
  if (app.teaching.value === null) return null;
  return (
    <div class={`row-marks ${app.tool.value === "teach" ? "" : "wanted"}`}>
      <p class="label clip">{`Is it “${app.teaching.value}”?`}</p>
      <MarkButtons name="row-mark" />
    </div>
  );
}

function Bar({ value, most }: { value: number; most: number }) {
  return (
    <svg class="bar" aria-hidden="true">
      <rect width={`${Math.max(0, Math.min(100, (100 * value) / most))}%`} height="100%" />
    </svg>
  );
}

/** All scores, the highest first; a few of them until more are asked for. */
function Scores({ row }: { row: Row }) {
  const open = useSignal(false);
  if (!row.scores.length) return null;
  const sorted = [...row.scores].sort((a, b) => b.score - a.score);
  const most = Math.max(1, sorted[0]!.score);
  const shown = open.value ? sorted : sorted.slice(0, FEW);
  return (
    <section class="part" aria-label="Scores" data-testid="scores">
      <h3>Scores of the model</h3>
      <ul class="bars">
        {shown.map((one) => (
          <li key={one.name}>
            <span class="clip" title={one.name}>{one.name}</span>
            <Bar value={one.score} most={most} />
            <span class="number">{one.score.toFixed(3)}</span>
          </li>
        ))}
      </ul>
      {sorted.length > FEW && (
        <button type="button" class="link" data-testid="all-scores" aria-expanded={open.value} onClick={() => (open.value = !open.value)}>
          {open.value ? "Fewer" : `All ${sorted.length}`}
        </button>
      )}
    </section>
  );
}

function Marked({ by }: { by: Record<string, Mark> }) {
  return (
    <span class="marked">
      {Object.entries(by).filter(([, given]) => given !== "none").map(([who, given]) => (
        <span key={who} class="chip" title={`${who}: ${given}`}>
          <MarkIcon of={given} />
          <span class="clip">{who}</span>
        </span>
      ))}
    </span>
  );
}

/** Probabilities of the classes that were taught, and who marked what. */
function Taught({ row }: { row: Row }) {
  const known = new Map(row.classes.filter((one) => one.probability !== null).map((one) => [one.name, one.probability]));
  const likely = [...known.keys()].sort((a, b) => (known.get(b) ?? 0) - (known.get(a) ?? 0)).slice(0, FEW);
  const names = [...new Set([...likely, ...Object.keys(row.marks)])];
  if (!names.length) return null;
  return (
    <section class="part" aria-label="Taught classes" data-testid="row-classes">
      <h3>Taught classes</h3>
      <ul class="bars taught">
        {names.map((name) => {
          const probability = known.get(name) ?? null;
          return (
            <li key={name} data-name={name}>
              <span class="clip" title={name}>{name}</span>
              {probability === null ? <span class="bar" /> : <Bar value={probability} most={1} />}
              <span class="number">{probability === null ? "–" : percent(probability)}</span>
              <Marked by={row.marks[name] ?? {}} />
            </li>
          );
        })}
      </ul>
    </section>
  );
}

/** The rows that are nearest, as small cards. */
function Neighbours({ row }: { row: number }) {
  const hits = useSignal<Hit[] | null>(null);
  const failed = useSignal<string | null>(null);
  useEffect(() => {
    let wanted = true;
    const show = async () => {
      try {
        const found = await get<{ hits: Hit[] }>("/api/neighbours", { row, k: 12 });
        if (!wanted) return;
        failed.value = null;
        hits.value = found.hits.filter((hit) => hit.row !== row);
        void wantShort(hits.value.map((hit) => hit.row));
      } catch (error) {
        if (wanted) failed.value = error instanceof Error ? error.message : String(error);
      }
    };
    const timer = setTimeout(() => void show(), 60); // the sound first; who runs through a list does not stop here
    return () => {
      wanted = false;
      clearTimeout(timer);
    };
  }, [row, epoch.value]);
  const all = () => {
    const found = hits.value ?? [];
    const notes = new Map(found.map((hit) => [hit.row, hit.similarity.toFixed(3)]));
    app.list.value = { title: "Nearest rows", rows: [row, ...found.map((hit) => hit.row)], notes };
  };
  return (
    <section class="part" aria-label="Nearest rows" data-testid="neighbours">
      <h3>
        Nearest rows
        <button type="button" class="link" data-testid="neighbours-list" disabled={!hits.value?.length} onClick={all}>As a list</button>
      </h3>
      {failed.value && <p class="trouble">{failed.value}</p>}
      <ul class="neighbours">
        {(hits.value ?? []).map((hit) => <Neighbour key={hit.row} hit={hit} />)}
      </ul>
    </section>
  );
}

function Neighbour({ hit }: { hit: Hit }) {
  const one = shorts.value.get(hit.row);
  return (
    <li>
      <button type="button" class="neighbour" data-testid="neighbour" data-row={hit.row} title={one?.id} onPointerEnter={() => void prefetch(hit.row)} onClick={() => (app.current.value = hit.row)}>
        {one ? <Thumb one={one} size={128} /> : null}
        {one ? <Words one={one} /> : <span class="words"><span class="skeleton line" /></span>}
        <span class="note">{hit.similarity.toFixed(2)}</span>
      </button>
    </li>
  );
}

function Table({ entries, name, title }: { entries: [string, string][]; name: string; title: string }) {
  if (!entries.length) return null;
  return (
    <section class="part" aria-label={title} data-testid={name}>
      <h3>{title}</h3>
      <dl class="facts">
        {entries.map(([key, value]) => (
          <div key={key}>
            <dt class="clip" title={key}>{key}</dt>
            <dd>{value}</dd>
          </div>
        ))}
      </dl>
    </section>
  );
}

function told(value: string | number | boolean | null): string {
  if (value === null) return "–";
  return typeof value === "boolean" ? (value ? "yes" : "no") : String(value);
}

export function Detail() {
  const row = app.row.value;
  const number = app.current.value;
  useEffect(() => {
    if (row) keepShort([row]);
  }, [row]);
  if (number === null) {
    return (
      <section class="detail" aria-label="Row" data-testid="detail">
        <p class="nothing">Click a point on the map, or press the arrow down key, to see and hear it.</p>
      </section>
    );
  }
  if (!row) {
    return (
      <section class="detail" aria-label="Row" aria-busy="true" data-testid="detail">
        <div class="detail-waits"><span class="skeleton" /><span class="skeleton tall" /><span class="skeleton" /></div>
      </section>
    );
  }
  return (
    <section class="detail" aria-label="Row" aria-busy={row.row !== number} data-testid="detail" data-row={row.row}>
      <Head row={row} />
      <Marks />
      <Media row={row} />
      <div class="detail-parts">
        <Scores row={row} />
        <Taught row={row} />
        <Neighbours row={row.row} />
        <Table name="metadata" title="Metadata" entries={Object.entries(row.metadata).map(([key, value]) => [key, told(value)])} />
        <Table name="origin" title="Where the numbers come from" entries={row.origin.map((one) => [one.title, one.value])} />
      </div>
    </section>
  );
}
