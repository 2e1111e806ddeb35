/** The list in hand, to listen through by keyboard. */

import { useComputed, useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { app, shortcut, type List } from "./app";
import { epoch, nameOf, prefetch, shorts, thumbnail, wantShort, whereOf } from "./rows";
import { inHand, lessLike, more, moreLike, searching, searchMore, unlike } from "./searching";
import { marks } from "./teaching";
import { MarkIcon } from "./teach";
import type { RowShort } from "./types";

const AROUND = 12; // rows drawn above and below what is seen

/** To the next or previous row of the list in hand; without a list, of the points. */
function step(by: number): void {
  const list = app.list.value?.rows;
  const rows = list?.length ? list : (app.points.value?.rows ?? []);
  const now = app.current.value;
  if (!rows.length) return;
  const at = now === null ? -1 : rows.indexOf(now);
  const next = at < 0 ? 0 : Math.max(0, Math.min(rows.length - 1, at + by));
  app.current.value = rows[next]!;
}

shortcut({ key: "ArrowDown", words: "Next row, played at once", group: "List", run: () => step(1) });
shortcut({ key: "ArrowUp", words: "Previous row", group: "List", run: () => step(-1) });
shortcut({ key: "PageDown", words: "Ten rows on", group: "List", run: () => step(10) });
shortcut({ key: "PageUp", words: "Ten rows back", group: "List", run: () => step(-10) });
shortcut({ key: "Home", words: "First row of the list", group: "List", run: () => step(-1e9) });
shortcut({ key: "End", words: "Last row of the list", group: "List", run: () => step(1e9) });

function Chip({ row, liked }: { row: number; liked: boolean }) {
  useEffect(() => void wantShort([row]), [row, epoch.value]);
  const one = shorts.value.get(row);
  const words = one ? (one.label ?? nameOf(one.id)) : `row ${row}`;
  return (
    <li class={`chip liking ${liked ? "like" : "dislike"}`} data-testid={liked ? "like" : "dislike"} data-row={row}>
      <span aria-hidden="true">{liked ? "+" : "−"}</span>
      <button type="button" class="chip-name clip" title={one?.id} onClick={() => (app.current.value = row)}>{words}</button>
      <button type="button" class="chip-away" aria-label={`No longer ${liked ? "more" : "less"} like ${words}`} onClick={() => unlike(row)}>✕</button>
    </li>
  );
}

function Likes() {
  if (!inHand.value || (!app.likes.value.length && !app.dislikes.value.length)) return null;
  return (
    <ul class="likes" aria-label="Rows that are searched with">
      {app.likes.value.map((row) => <Chip key={row} row={row} liked />)}
      {app.dislikes.value.map((row) => <Chip key={row} row={row} liked={false} />)}
    </ul>
  );
}

function LikeButtons() {
  const off = app.current.value === null;
  return (
    <div class="like-buttons">
      <button type="button" class="button" data-testid="more-like" aria-keyshortcuts="m" disabled={off} onClick={moreLike}>
        More like this <kbd class="kbd">M</kbd>
      </button>
      <button type="button" class="button" data-testid="less-like" aria-keyshortcuts="Shift+m" disabled={off} onClick={lessLike}>
        Less like it <kbd class="kbd">⇧M</kbd>
      </button>
    </div>
  );
}

export function Thumb({ one, size }: { one: RowShort; size: number }) {
  const url = thumbnail(one, size);
  return url ? <img class="thumb" src={url} alt="" loading="lazy" decoding="async" /> : null;
}

/** What a row is, in two lines. */
export function Words({ one }: { one: RowShort }) {
  const where = whereOf(one);
  if (one.text !== null) {
    return (
      <span class="words">
        <span class="first excerpt">{one.text}</span>
        <span class="second clip">{[one.label, nameOf(one.id)].filter(Boolean).join(" · ")}</span>
      </span>
    );
  }
  return (
    <span class="words">
      <span class="first clip">{one.label ?? nameOf(one.id)}</span>
      <span class="second clip">{[one.label === null ? "" : nameOf(one.id), where].filter(Boolean).join(" · ")}</span>
    </span>
  );
}

function Result({ row, at, height, note }: { row: number; at: number; height: number; note: string | undefined }) {
  const one = shorts.value.get(row);
  const current = app.current.value === row;
  const name = app.teaching.value;
  const given = name === null ? undefined : marks.value.get(name)?.get(row);
  return (
    <li style={{ transform: `translateY(${at * height}px)`, height: `${height}px` }}>
      <button
        type="button"
        class="result"
        data-testid="result"
        data-row={row}
        data-current={current}
        aria-current={current ? "true" : undefined}
        tabIndex={current ? 0 : -1}
        title={one?.id}
        onPointerEnter={() => void prefetch(row)}
        onClick={() => (app.current.value = row)}
      >
        <span class="place">{at + 1}</span>
        {one ? <Thumb one={one} size={96} /> : null}
        {one ? <Words one={one} /> : <span class="words"><span class="skeleton line" /></span>}
        {given && <MarkIcon of={given} />}
        {note && <span class="note" data-testid="similarity">{note}</span>}
      </button>
    </li>
  );
}

function Rows() {
  const box = useRef<HTMLDivElement>(null);
  const listed = useRef<List | null>(null); // what was scrolled
  const top = useSignal(0);
  const room = useSignal(400);
  const list = app.list.value!;
  const modality = app.state.value?.modality;
  const height = modality === "image" || modality === "video" ? 64 : modality === "text" ? 62 : 46;
  const first = Math.max(0, Math.floor(top.value / height) - AROUND);
  const last = Math.min(list.rows.length, Math.ceil((top.value + room.value) / height) + AROUND);
  const shown = list.rows.slice(first, last);
  const now = useComputed(() => (app.current.value === null ? -1 : (app.list.value?.rows.indexOf(app.current.value) ?? -1)));
  useEffect(() => {
    const watch = new ResizeObserver(([entry]) => (room.value = entry!.contentRect.height));
    watch.observe(box.current!);
    return () => watch.disconnect();
  }, []);
  useEffect(() => {
    const timer = setTimeout(() => void wantShort(shown), 40);
    return () => clearTimeout(timer);
  }, [list, first, last, epoch.value]);
  useEffect(() => { // the current row stays in view, and the focus with it
    const to = box.current!;
    if (now.value < 0) {
      if (listed.current !== list) to.scrollTop = 0;
      listed.current = list;
      return;
    }
    listed.current = list;
    const begin = now.value * height;
    if (begin < to.scrollTop) to.scrollTop = begin - height;
    else if (begin + 2 * height > to.scrollTop + to.clientHeight) to.scrollTop = begin + 2 * height - to.clientHeight;
    if (to.contains(document.activeElement)) {
      requestAnimationFrame(() => to.querySelector<HTMLElement>('[data-current="true"]')?.focus({ preventScroll: true }));
    }
  }, [now.value, list]);
  return (
    <div class="rows" ref={box} tabIndex={-1} onScroll={(event) => (top.value = event.currentTarget.scrollTop)}>
      <ol style={{ height: `${list.rows.length * height}px` }} aria-label={list.title}>
        {shown.map((row, i) => (
          <Result key={row} row={row} at={first + i} height={height} note={list.notes.get(row)} />
        ))}
      </ol>
    </div>
  );
}

/** Before there is a list: ways to begin. */
function Begin() {
  const audio = app.state.value?.modality === "audio";
  const name = () => {
    app.tool.value = "teach";
    requestAnimationFrame(() => document.querySelector<HTMLElement>("[data-testid=teach-class]")?.focus());
  };
  return (
    <div class="begin" data-testid="begin">
      <p class="soft">
        A list to {audio ? "listen" : "look"} through by the arrow keys comes here: what you find, select, or are asked about. To begin, click a point on the map, or
      </p>
      <div class="begin-ways">
        <button type="button" class="button" onClick={() => step(1)}>
          Go through all rows <kbd class="kbd">↓</kbd>
        </button>
        <button type="button" class="button" onClick={() => document.getElementById("find")?.focus()}>
          Find by text <kbd class="kbd">/</kbd>
        </button>
        <button type="button" class="button" onClick={() => (app.tool.value = "search")}>Search by example</button>
        <button type="button" class="button" onClick={name}>Teach a class</button>
      </div>
    </div>
  );
}

export function Results() {
  const list = app.list.value;
  const count = list?.rows.length ?? 0;
  return (
    <section class="results-panel" aria-label="List" aria-busy={searching.value} data-testid="results">
      <header class="results-head">
        <h2 class="panel-title clip" title={list?.title} data-testid="results-title">{list?.title ?? "List"}</h2>
        <span class="soft small" data-testid="results-count">{list ? `${count.toLocaleString("en")}${more.value ? "+" : ""}` : ""}</span>
        <LikeButtons />
      </header>
      <Likes />
      {list && count > 0 && <Rows />}
      {list && !count && <p class="nothing">No row is like that{searching.value ? " yet" : ""}.</p>}
      {!list && (searching.value ? <p class="nothing">Searching all rows…</p> : <Begin />)}
      {list && more.value && (
        <button type="button" class="button quiet" data-testid="more-results" disabled={searching.value} onClick={() => void searchMore()}>
          Show more
        </button>
      )}
    </section>
  );
}
