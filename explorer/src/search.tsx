/** Search: by the current row, a file, the microphone. */

import { useSignal, type Signal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { app } from "./app";
import { record, type Recording } from "./microphone";
import { filter, searchCurrent, searchFile, searching, searchLikes } from "./searching";

const LONGEST = 60; // seconds of a recording

function complain(error: unknown): void {
  app.message.value = { kind: "error", words: error instanceof Error ? error.message : String(error) };
}

/** Seconds and level while it records. */
function Recorder({ recording, end }: { recording: Recording; end: () => void }) {
  const seconds = useSignal(0);
  const level = useRef<HTMLDivElement>(null);
  useEffect(() => {
    const begun = performance.now();
    let frame = 0;
    const tick = () => {
      seconds.value = Math.floor((performance.now() - begun) / 100) / 10;
      if (level.current) level.current.style.width = `${100 * recording.level()}%`;
      if (seconds.value >= LONGEST) end();
      else frame = requestAnimationFrame(tick);
    };
    tick();
    return () => cancelAnimationFrame(frame);
  }, [recording]);
  return (
    <div class="recorder">
      <span class="recording-dot" aria-hidden="true" />
      <span role="timer" aria-label="Seconds recorded">{seconds.value.toFixed(1)} s</span>
      <div class="progress level"><div ref={level} /></div>
      <button type="button" class="button primary" data-testid="microphone-stop" onClick={end}>Stop and search</button>
      <button type="button" class="button quiet" data-testid="microphone-cancel" onClick={() => recording.cancel()}>Cancel</button>
    </div>
  );
}

async function startRecording(to: Signal<Recording | null>): Promise<void> {
  try {
    const one = await record();
    to.value = { ...one, cancel: () => {
      to.value = null;
      one.cancel();
    } };
  } catch (error) {
    complain(error);
  }
}

async function stopRecording(of: Signal<Recording | null>): Promise<void> {
  const one = of.value;
  of.value = null;
  if (!one) return;
  try {
    const blob = await one.stop();
    if (blob) await searchFile(blob, "microphone.wav");
    else complain("Nothing was recorded: hold on for a second or so.");
  } catch (error) {
    complain(error);
  }
}

function Examples({ choose, recording }: { choose: () => void; recording: Signal<Recording | null> }) {
  const modality = app.state.value?.modality;
  const busy = searching.value;
  return (
    <div class="examples">
      <button
        type="button"
        class="button"
        data-testid="search-current"
        aria-keyshortcuts="s"
        disabled={app.current.value === null || busy}
        onClick={searchCurrent}
      >
        Like the current row <kbd class="kbd">s</kbd>
      </button>
      <button type="button" class="button" data-testid="upload" disabled={busy} onClick={choose}>A file…</button>
      {modality === "audio" && (
        <button
          type="button"
          class="button"
          data-testid="microphone"
          disabled={busy || recording.value !== null}
          onClick={() => void startRecording(recording)}
        >
          Microphone
        </button>
      )}
    </div>
  );
}

function Where() {
  const hint = "A filter as of --where, such as label = 'wren' or score > 0.8";
  return (
    <label class="labelled where">
      <span class="label">Only rows where</span>
      <input
        class="field mono"
        data-testid="where"
        spellcheck={false}
        autocomplete="off"
        placeholder="label = 'wren'"
        title={hint}
        value={filter}
        onChange={(event) => {
          filter.value = event.currentTarget.value;
          void searchLikes();
        }}
      />
    </label>
  );
}

const ACCEPTED: Record<string, string> = { audio: "audio/*,video/*", image: "image/*", video: "video/*", text: "text/*,.txt" };

export function Search() {
  const input = useRef<HTMLInputElement>(null);
  const over = useSignal(0);
  const recording = useSignal<Recording | null>(null);
  useEffect(() => () => recording.peek()?.cancel(), []);
  const take = (files: FileList | null | undefined) => {
    const file = files?.[0];
    if (file) void searchFile(file, file.name);
  };
  const files = (event: DragEvent) => event.dataTransfer?.types.includes("Files") ?? false;
  return (
    <section
      class={`search-panel ${over.value > 0 ? "over" : ""}`}
      aria-label="Search"
      aria-busy={searching.value}
      data-testid="search"
      onDragEnter={(event) => files(event) && over.value++}
      onDragLeave={(event) => files(event) && over.value--}
      onDragOver={(event) => files(event) && event.preventDefault()}
      onDrop={(event) => {
        event.preventDefault();
        over.value = 0;
        take(event.dataTransfer?.files);
      }}
    >
      <h2 class="panel-title">Search by example</h2>
      <Examples choose={() => input.current?.click()} recording={recording} />
      {recording.value && <Recorder recording={recording.value} end={() => void stopRecording(recording)} />}
      <input
        ref={input}
        class="hidden-words"
        type="file"
        tabIndex={-1}
        aria-label="A file to search with"
        data-testid="upload-file"
        accept={ACCEPTED[app.state.value?.modality ?? "audio"]}
        onChange={(event) => {
          take(event.currentTarget.files);
          event.currentTarget.value = "";
        }}
      />
      <Where />
      <p class="soft small">
        {searching.value ? "Searching all rows…" : "Drop a file here, or drag over a spectrogram and search for that part."}
      </p>
      {over.value > 0 && <div class="drop-here">Search for what is like this file</div>}
    </section>
  );
}
