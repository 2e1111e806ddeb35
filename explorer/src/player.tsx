/** Hear and see the current sound: transport, how it is drawn, a part of it to search with. */

import { useComputed } from "@preact/signals";
import { app, shortcut } from "./app";
import { searchPart } from "./searching";
import { CONTEXTS, SPEEDS, WINDOWS, settings } from "./settings";
import { audio, part, pause, play, playhead, playing, seek, silent, sound, toggle, trouble, waiting } from "./sound";
import { SoundPictures } from "./spectrogram";
import type { Palette, Scale } from "./spectrum";
import type { Row } from "./types";

function step<T>(of: readonly T[], now: T, by: number): T {
  const at = of.indexOf(now);
  return of[Math.max(0, Math.min(of.length - 1, at + by))] ?? now;
}

function bound(edge: "from" | "to"): void {
  const one = sound.value;
  if (!one) return;
  const at = playhead.value;
  const now = part.value ?? { from: one.region[0], to: one.region[1] };
  const next = { ...now, [edge]: at };
  if (next.from < next.to) part.value = next;
}

shortcut({ key: " ", words: "Play or pause", group: "Listen", run: toggle });
shortcut({ key: "r", words: "Repeat (loop)", group: "Listen", run: () => (settings.loop.value = !settings.loop.value) });
shortcut({ key: ",", words: "Slower", group: "Listen", run: () => (settings.speed.value = step(SPEEDS, settings.speed.value, -1)) });
shortcut({ key: ".", words: "Faster", group: "Listen", run: () => (settings.speed.value = step(SPEEDS, settings.speed.value, 1)) });
shortcut({ key: "c", words: "Context before and after: the next choice", group: "Listen", run: () => (settings.context.value = CONTEXTS[(CONTEXTS.indexOf(settings.context.value) + 1) % CONTEXTS.length]!) });
shortcut({ key: "[", words: "A part begins where it plays", group: "Listen", run: () => bound("from") });
shortcut({ key: "]", words: "A part ends where it plays", group: "Listen", run: () => bound("to") });
shortcut({ key: "Shift+s", words: "Search by the part that is drawn", group: "Search", run: () => void searchDrawn() });

export async function searchDrawn(): Promise<void> {
  const [one, drawn, row] = [sound.value, part.value, app.current.value];
  if (!one || !drawn || row === null) return;
  await searchPart({ row, start: one.begins + drawn.from, end: one.begins + drawn.to });
}

function clock(seconds: number): string {
  const minutes = Math.floor(seconds / 60);
  return `${minutes}:${(seconds - 60 * minutes).toFixed(1).padStart(4, "0")}`;
}

/** Where it plays, in the time of the recording. */
function Clock() {
  const words = useComputed(() => {
    const one = sound.value;
    return one ? `${clock(one.begins + Math.min(playhead.value, one.seconds))} / ${clock(one.begins + one.seconds)}` : "–";
  });
  return <span class="clock">{words}</span>;
}

function Transport() {
  return (
    <div class="transport" role="group" aria-label="Playing">
      <button
        type="button"
        class="icon-button primary round"
        data-testid="play"
        data-playing={playing.value}
        aria-label={playing.value ? "Pause" : "Play"}
        onClick={() => (playing.value ? pause() : play())}
        disabled={!sound.value && !playing.value}
      >
        <svg viewBox="0 0 24 24" aria-hidden="true">
          {playing.value ? <path d="M7 5h4v14H7zM13 5h4v14h-4z" /> : <path d="M8 5l11 7-11 7z" />}
        </svg>
      </button>
      <button
        type="button"
        class="button"
        data-testid="loop"
        aria-pressed={settings.loop.value}
        onClick={() => (settings.loop.value = !settings.loop.value)}
      >
        Loop
      </button>
      <Clock />
      <label class="check small">
        <input
          type="checkbox"
          data-testid="play-at-once"
          checked={settings.playAtOnce.value}
          onChange={(event) => (settings.playAtOnce.value = event.currentTarget.checked)}
        />
        <span>Play at once</span>
      </label>
      <Tempo />
    </div>
  );
}

/** Speed, pitch, and what is played around the region. */
function Tempo() {
  return (
    <div class="tempo">
      <label class="labelled">
        <span class="label">Speed</span>
        <select
          class="field"
          data-testid="speed"
          value={String(settings.speed.value)}
          onChange={(event) => (settings.speed.value = Number(event.currentTarget.value))}
        >
          {SPEEDS.map((one) => (
            <option key={one} value={String(one)}>{`${one}×`}</option>
          ))}
        </select>
      </label>
      <label class="labelled">
        <span class="label">Pitch</span>
        <select
          class="field"
          data-testid="pitch"
          value={settings.pitch.value}
          onChange={(event) => (settings.pitch.value = event.currentTarget.value as "kept" | "falls")}
        >
          <option value="kept">kept</option>
          <option value="falls">follows speed</option>
        </select>
      </label>
      <label class="labelled">
        <span class="label">Context</span>
        <select
          class="field"
          data-testid="context"
          value={String(settings.context.value)}
          onChange={(event) => (settings.context.value = Number(event.currentTarget.value))}
        >
          {CONTEXTS.map((one) => (
            <option key={one} value={String(one)}>{one ? `± ${one} s` : "none"}</option>
          ))}
        </select>
      </label>
    </div>
  );
}

function Hertz({ of, name, words }: { of: typeof settings.low; name: string; words: string }) {
  const rate = sound.value?.rate;
  return (
    <label class="labelled">
      <span class="label">{words}</span>
      <input
        class="field"
        type="number"
        min="0"
        step="100"
        inputMode="numeric"
        data-testid={name}
        placeholder={name === "freq-low" ? "0" : rate ? String(rate / 2) : "all"}
        value={of.value ?? ""}
        onChange={(event) => {
          const value = event.currentTarget.valueAsNumber;
          of.value = Number.isFinite(value) && value > 0 ? value : null;
        }}
      />
    </label>
  );
}

const SCALES: [Scale, string][] = [["linear", "linear"], ["log", "logarithmic"], ["mel", "mel"]];
const PALETTES: [Palette, string][] = [["magma", "magma"], ["viridis", "viridis"], ["grey", "ink on paper"]];

/** How the spectrogram is drawn. */
function Drawing() {
  return (
    <div class="drawing" role="group" aria-label="Spectrogram">
      <label class="labelled">
        <span class="label">Scale</span>
        <select
          class="field"
          data-testid="freq-scale"
          value={settings.scale.value}
          onChange={(event) => (settings.scale.value = event.currentTarget.value as Scale)}
        >
          {SCALES.map(([value, words]) => (
            <option key={value} value={value}>{words}</option>
          ))}
        </select>
      </label>
      <Hertz of={settings.low} name="freq-low" words="From Hz" />
      <Hertz of={settings.high} name="freq-high" words="to Hz" />
      <label class="labelled">
        <span class="label">Window</span>
        <select
          class="field"
          data-testid="window-size"
          value={String(settings.window.value)}
          onChange={(event) => (settings.window.value = Number(event.currentTarget.value))}
        >
          <option value="0">auto</option>
          {WINDOWS.map((one) => (
            <option key={one} value={String(one)}>{one}</option>
          ))}
        </select>
      </label>
      <label class="labelled">
        <span class="label">Colours</span>
        <select
          class="field"
          data-testid="palette"
          value={settings.palette.value}
          onChange={(event) => (settings.palette.value = event.currentTarget.value as Palette)}
        >
          {PALETTES.map(([value, words]) => (
            <option key={value} value={value}>{words}</option>
          ))}
        </select>
      </label>
      <label class="labelled wide">
        <span class="label">Contrast</span>
        <input
          type="range"
          min="0"
          max="1"
          step="0.05"
          data-testid="contrast"
          value={settings.contrast.value}
          onInput={(event) => (settings.contrast.value = event.currentTarget.valueAsNumber)}
        />
      </label>
    </div>
  );
}

/** What is drawn on the sound, and what can be done with it. */
function PartBar() {
  const one = sound.value;
  const drawn = part.value;
  if (!one) return <div class="part-bar" />;
  if (!drawn) return <div class="part-bar hint">Drag over the sound to pick a part of it.</div>;
  const edge = (name: "from" | "to") => (
    <input
      class="field"
      type="number"
      step="0.01"
      aria-label={name === "from" ? "The part begins at, seconds" : "The part ends at, seconds"}
      data-testid={`part-${name}`}
      value={(one.begins + drawn[name]).toFixed(3)}
      onChange={(event) => {
        const at = event.currentTarget.valueAsNumber - one.begins;
        const next = { ...drawn, [name]: Math.max(0, Math.min(one.seconds, at)) };
        if (next.from < next.to) part.value = next;
      }}
    />
  );
  return (
    <div class="part-bar">
      {edge("from")}
      <span aria-hidden="true">–</span>
      {edge("to")}
      <span>s</span>
      <button type="button" class="button primary" data-testid="search-region" onClick={() => void searchDrawn()}>
        Search for this
      </button>
      <button type="button" class="icon-button" data-testid="part-play" aria-label="Play the part" title="Play the part" onClick={() => play(drawn.from)}>
        <svg viewBox="0 0 24 24" aria-hidden="true"><path d="M8 5l11 7-11 7z" /></svg>
      </button>
      <button type="button" class="icon-button quiet" data-testid="part-clear" aria-label="Forget the part" title="Forget the part" onClick={() => (part.value = null)}>
        <svg viewBox="0 0 24 24" aria-hidden="true"><path d="M6.5 6.5l11 11M17.5 6.5l-11 11" /></svg>
      </button>
    </div>
  );
}

/** Ultrasound is not heard at its own speed: offers to bring it down. */
function Expansion() {
  const rate = sound.value?.rate ?? 0;
  const expanded = settings.speed.value === 0.1 && settings.pitch.value === "falls";
  if (rate < 96_000) return null;
  const change = () => {
    settings.pitch.value = expanded ? "kept" : "falls";
    settings.speed.value = expanded ? 1 : 0.1;
    if (sound.value) seek(0);
  };
  return (
    <button type="button" class="button" data-testid="expansion" aria-pressed={expanded} onClick={change}>
      Ultrasound: ten times slower and lower
    </button>
  );
}

export function Player({ row }: { row: Row }) {
  const failed = row.media.error ?? trouble.value;
  if (failed) {
    return (
      <p class="trouble" role="status" data-testid="media-error">
        {failed}
      </p>
    );
  }
  return (
    <div class="player" aria-busy={waiting.value} ref={(place) => void (place && audio.parentNode !== place && place.append(audio))}>
      <SoundPictures one={sound.value} />
      {silent.value && !playing.value && (
        <p class="hint" role="status">Press play, or the space bar, once: then sounds play as you go.</p>
      )}
      <Transport />
      <PartBar />
      <details class="more" open={settings.drawing.value} onToggle={(event) => (settings.drawing.value = event.currentTarget.open)}>
        <summary data-testid="drawing">Spectrogram: scale, range, window, contrast</summary>
        <Drawing />
      </details>
      <Expansion />
    </div>
  );
}
