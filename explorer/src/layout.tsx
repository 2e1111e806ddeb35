/** The whole page: header, colours and tools at the left, map and list, details at the right. */

import { effect, signal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { app, shortcut } from "./app";
import { Detail } from "./detail";
import { Help, helpOpen } from "./help";
import { DownIcon, FindIcon, HelpIcon, MoonIcon, SunIcon, UpIcon } from "./icons";
import { LegendPanel } from "./legend";
import { failed, poll } from "./live";
import { MapArea } from "./map";
import { CutOff, Messages } from "./messages";
import { Results } from "./results";
import { Search } from "./search";
import { findText } from "./searching";
import { Teach } from "./teach";
import { keep, kept, switchTheme } from "./theme";
import type { Running } from "./types";

const number = new Intl.NumberFormat("en");

type Pane = "detail" | "list" | "colours" | "search" | "teach";

/** What stands under the map on a narrow page. */
const pane = signal<Pane>("colours");
const narrow = signal(false);
/** Height of the list under the map, in pixels; 0: closed. */
const dock = signal(Number(kept("penult.dock") ?? 216));
const lastHeight = signal(216);

export function startLayout(): void {
  const query = matchMedia("(max-width: 760px)");
  narrow.value = query.matches;
  query.addEventListener("change", () => (narrow.value = query.matches));
  effect(() => {
    if (app.current.value !== null) pane.value = "detail";
  });
  effect(() => {
    if (app.list.value) pane.value = "list";
  });
  effect(() => {
    if (app.tool.value !== "colours") pane.value = app.tool.value;
  });
  effect(() => keep("penult.dock", String(dock.value)));
  shortcut({ key: "/", words: "Find by text", group: "Search", run: () => document.getElementById("find")?.focus() });
  shortcut({ key: "?", words: "Show these keys", group: "Page", run: () => (helpOpen.value = true) });
  shortcut({ key: "d", words: "Switch between dark and light", group: "Page", run: switchTheme });
}

function Find() {
  return (
    <form
      class="find"
      role="search"
      onSubmit={(event) => {
        event.preventDefault();
        const field = event.currentTarget.elements.namedItem("text") as HTMLInputElement;
        const text = field.value.trim();
        if (!text) return;
        field.blur(); // arrow keys are the list's now
        void findText(text);
      }}
    >
      <FindIcon />
      <input id="find" name="text" class="field" type="search" data-testid="find" aria-label="Find rows by id, label or metadata" placeholder="Find ids, labels, metadata" autocomplete="off" spellcheck={false} />
      <kbd class="kbd" aria-hidden="true">
        /
      </kbd>
    </form>
  );
}

function duration(seconds: number): string {
  if (seconds < 60) return `${Math.max(1, Math.round(seconds))} s`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min`;
  return `${Math.floor(seconds / 3600)} h ${Math.round((seconds % 3600) / 60)} min`;
}

function RunningNow({ run }: { run: Running }) {
  const part = run.total ? Math.min(1, run.rows / run.total) : null;
  const bar = useRef<HTMLDivElement>(null);
  useEffect(() => {
    if (bar.current && part !== null) bar.current.style.width = `${100 * part}%`;
  }, [part]);
  const facts = [
    run.total ? `${number.format(run.rows)} of ${number.format(run.total)} rows` : `${number.format(run.rows)} rows`,
    run.rate !== null ? `${number.format(Number(run.rate.toPrecision(3)))} a second` : null,
    run.left !== null ? `${duration(run.left)} left` : null,
  ].filter(Boolean);
  return (
    <div class="running" data-testid="running" title={run.command}>
      <span class="running-words">
        <i class="pulse" />
        <span class="clip">{facts.join(" · ")}</span>
      </span>
      {part !== null && (
        <div class="progress" role="progressbar" aria-label={run.command} aria-valuemin={0} aria-valuemax={100} aria-valuenow={Math.round(100 * part)}>
          <div ref={bar} />
        </div>
      )}
    </div>
  );
}

function Header() {
  const state = app.state.value;
  const dark = app.theme.value === "dark";
  return (
    <header class="top">
      <h1 class="name" data-testid="collection">
        <i class="mark" aria-hidden="true" />
        <span class="clip">{state?.name ?? "Penult"}</span>
      </h1>
      {state ? (
        <p class="facts soft small clip" data-testid="rows">
          {number.format(state.rows)} rows<span class="facts-model"> · {state.model.name}</span>
        </p>
      ) : (
        <p class="facts" />
      )}
      {state?.running ? <RunningNow run={state.running} /> : <span class="running-none" />}
      <Find />
      <button class="icon-button quiet" data-testid="theme" aria-label={dark ? "Light theme" : "Dark theme"} title={`${dark ? "Light" : "Dark"} theme (D)`} onClick={switchTheme}>
        {dark ? <SunIcon /> : <MoonIcon />}
      </button>
      <button class="icon-button quiet" data-testid="help" aria-label="Keys and help" title="Keys (?)" onClick={() => (helpOpen.value = true)}>
        <HelpIcon />
      </button>
    </header>
  );
}

const TOOLS = [
  { id: "colours", name: "Colours" },
  { id: "search", name: "Search" },
  { id: "teach", name: "Teach" },
] as const;

/** Left and right within a list of tabs. */
function step<T>(event: KeyboardEvent, ids: readonly T[], now: T, go: (id: T) => void): void {
  const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!by || event.shiftKey) return;
  event.preventDefault();
  go(ids[(ids.indexOf(now) + by + ids.length) % ids.length]);
  const tabs = event.currentTarget as HTMLElement;
  requestAnimationFrame(() => tabs.querySelector<HTMLElement>("[aria-selected=true]")?.focus());
}

function Side() {
  const tool = app.tool.value;
  const go = (id: typeof tool) => (app.tool.value = id);
  return (
    <aside class="side" aria-label="Colours, search and teaching">
      <div class="tabs" role="tablist" aria-label="Tools" onKeyDown={(event) => step(event, TOOLS.map((one) => one.id), tool, go)}>
        {TOOLS.map(({ id, name }) => (
          <button key={id} id={`tab-${id}`} role="tab" data-testid={`tab-${id}`} aria-selected={tool === id} aria-controls={`panel-${id}`} tabIndex={tool === id ? 0 : -1} onClick={() => go(id)}>
            {name}
          </button>
        ))}
      </div>
      <Panel id="colours" shown={tool === "colours"}>
        <LegendPanel />
      </Panel>
      <Panel id="search" shown={tool === "search"}>
        <Search />
      </Panel>
      <Panel id="teach" shown={tool === "teach"}>
        <Teach />
      </Panel>
    </aside>
  );
}

function Panel({ id, shown, children }: { id: string; shown: boolean; children: preact.ComponentChildren }) {
  return (
    <div class="panel" id={`panel-${id}`} role="tabpanel" aria-labelledby={`tab-${id}`} hidden={!shown} tabIndex={-1}>
      <h2 class="hidden-words">{TOOLS.find((one) => one.id === id)?.name}</h2>
      {children}
    </div>
  );
}

function resize(height: number): void {
  const most = Math.max(120, window.innerHeight - 300);
  dock.value = height < 70 ? 0 : Math.round(Math.min(most, Math.max(110, height)));
  if (dock.value) lastHeight.value = dock.value;
}

function toggleDock(): void {
  dock.value = dock.value ? 0 : lastHeight.value || 216;
}

/** The line between map and list, to be dragged or moved by the arrow keys. */
function Divider() {
  const drag = (event: PointerEvent) => {
    const bar = event.currentTarget as HTMLElement;
    bar.setPointerCapture(event.pointerId);
    const move = (at: PointerEvent) => resize(window.innerHeight - at.clientY);
    bar.addEventListener("pointermove", move);
    bar.addEventListener("pointerup", () => bar.removeEventListener("pointermove", move), { once: true });
  };
  const keys = (event: KeyboardEvent) => {
    const by = { ArrowUp: 24, ArrowDown: -24 }[event.key];
    if (!by || event.shiftKey) return;
    event.preventDefault();
    event.stopPropagation();
    resize(dock.value + by);
  };
  return (
    <div class="divider">
      <div role="separator" aria-orientation="horizontal" aria-label="Height of the list" aria-valuemin={0} aria-valuemax={900} aria-valuenow={dock.value} tabIndex={0} data-testid="divider" onPointerDown={drag} onKeyDown={keys} />
      <button class="icon-button quiet" data-testid="dock" aria-label={dock.value ? "Close the list" : "Open the list"} aria-expanded={dock.value > 0} onClick={toggleDock}>
        {dock.value ? <DownIcon /> : <UpIcon />}
      </button>
    </div>
  );
}

const PANES: { id: Pane; name: string }[] = [
  { id: "detail", name: "Row" },
  { id: "list", name: "List" },
  { id: "colours", name: "Colours" },
  { id: "search", name: "Search" },
  { id: "teach", name: "Teach" },
];

function goTo(id: Pane): void {
  pane.value = id;
  if (id === "colours" || id === "search" || id === "teach") app.tool.value = id;
}

function Panes() {
  return (
    <nav class="panes" aria-label="Parts of the page">
      {PANES.map(({ id, name }) => (
        <button key={id} data-testid={`pane-${id}`} aria-current={pane.value === id ? "page" : undefined} onClick={() => goTo(id)}>
          {name}
        </button>
      ))}
    </nav>
  );
}

function Empty() {
  const name = app.state.value?.name ?? "x.lance";
  return (
    <div class="whole-note" data-testid="empty">
      <i class="mark large" aria-hidden="true" />
      <h2>This collection is empty</h2>
      <p>Add sounds, pictures, videos or texts with a model of yours. They appear here as they come.</p>
      <pre>penult embed MODEL FOLDER --into {name}</pre>
    </div>
  );
}

function Failed({ words }: { words: string }) {
  return (
    <div class="whole-note" role="alert" data-testid="failed">
      <h2>The collection cannot be shown</h2>
      <p>{words}</p>
      <button class="button primary" data-testid="retry" onClick={() => poll()}>
        Try again
      </button>
    </div>
  );
}

export function Layout() {
  const work = useRef<HTMLElement>(null);
  const height = dock.value;
  useEffect(() => work.current?.style.setProperty("--dock", `${height}px`), [height]);
  const state = app.state.value;
  const alone = failed.value !== null || state?.rows === 0;
  return (
    <div class="page" data-pane={pane.value}>
      <Header />
      <CutOff />
      {failed.value !== null && <Failed words={failed.value} />}
      {failed.value === null && state?.rows === 0 && <Empty />}
      {!alone && (
        <main class="work" ref={work} data-dock={height ? "open" : "closed"}>
          <Side />
          <MapArea />
          <div class="dock">
            {!narrow.value && <Divider />}
            <div class="dock-inside">
              <Results />
            </div>
          </div>
          <aside class="detail-side" aria-label="Row">
            <Detail />
          </aside>
          <Panes />
        </main>
      )}
      <Messages />
      <Help />
    </div>
  );
}
