/** The sound of the current row: fetched once, drawn from its samples, played by one element. */

import { effect, signal, type Signal } from "@preact/signals";
import { bytes } from "./api";
import { app } from "./app";
import { settings } from "./settings";
import type { Media, RowShort } from "./types";
import { decode, withRate } from "./wav";

export interface Sound {
  url: string;
  bytes: ArrayBuffer;
  samples: Float32Array;
  rate: number; // Hz, as recorded
  seconds: number;
  begins: number; // seconds in the recording
  region: [number, number]; // of the row, in seconds of this sound
}

/** What is needed of a row's media to fetch its sound. */
type Place = Pick<Media, "url" | "start" | "end"> & Partial<Media>;

/** Seconds of the sound that is shown. */
export interface Part {
  from: number;
  to: number;
}

export const audio = document.createElement("audio");
audio.preload = "auto";
audio.dataset.testid = "audio";

export const sound: Signal<Sound | null> = signal(null); // what is drawn
let heard: Sound | null = null; // what is played: drawn a moment later, so that drawing delays no sound
export const waiting = signal(false);
export const trouble: Signal<string | null> = signal(null);
export const playing = signal(false);
export const silent = signal(false); // the browser wants a click or a key first
export const playhead = signal(0); // seconds in the sound
export const part: Signal<Part | null> = signal(null);

const KEPT = 64 * 2 ** 20; // bytes of sounds
const STREAMED = 8 * 2 ** 20; // bytes of a sound that is played before all of it is here
const SLOWEST_FILE = 8000; // Hz; browsers refuse files far below
const kept = new Map<string, Promise<Sound>>();
let held = 0;

function address(media: Place, context: number): string {
  if (!context || media.start === null) return media.url!;
  const words = new URLSearchParams({ before: String(context), after: String(context) });
  return `${media.url}${media.url!.includes("?") ? "&" : "?"}${words}`;
}

async function fetched(url: string, media: Place, context: number): Promise<Sound> {
  const all = await bytes(url);
  const { rate, samples } = decode(all);
  const seconds = samples.length / rate;
  const start = media.start ?? 0;
  const begins = Math.max(0, start - (media.start === null ? 0 : context));
  const end = media.end === null ? seconds : Math.min(seconds, media.end - begins);
  held += all.byteLength;
  return { url, bytes: all, samples, rate, seconds, begins, region: [start - begins, end] };
}

/** The sound of a row with context around it; kept for when it is wanted again. */
export function fetchSound(media: Place, context: number): Promise<Sound> {
  const url = address(media, context);
  let one = kept.get(url);
  kept.delete(url);
  if (!one) {
    one = fetched(url, media, context);
    one.catch(() => kept.delete(url));
    for (const old of kept.keys()) {
      if (held < KEPT) break;
      void kept.get(old)?.then((gone) => (held -= gone.bytes.byteLength));
      kept.delete(old);
    }
  }
  kept.set(url, one);
  return one;
}

function large(media: Place, context: number): boolean {
  const seconds = (media.end ?? media.seconds ?? 0) - (media.start ?? 0) + 2 * context;
  return 2 * seconds * (media.rate ?? 0) > STREAMED;
}

let made: string | null = null; // the address of a blob
let stretch = 1; // seconds of the sound in a second of the element
let source = ""; // what the element plays

function point(url: string, name: string, factor: number): void {
  if (made) URL.revokeObjectURL(made);
  made = url.startsWith("blob:") ? url : null;
  [source, stretch] = [name, factor];
  audio.src = url;
}

/** Rate of a file whose pitch falls with the speed: whatever lies above hearing comes down into it.
 * An element alone would not do, since it resamples to the rate of the loudspeaker first. */
function fileRate(one: Sound): number {
  const speed = settings.speed.peek();
  if (settings.pitch.peek() === "kept" || speed >= 1) return one.rate;
  return Math.max(Math.min(one.rate, SLOWEST_FILE), Math.round(one.rate * speed));
}

/** Makes the element play a sound at the speed and pitch in hand; it stays where it is. */
function tune(one: Sound | null): void {
  if (one) {
    const rate = fileRate(one);
    const name = `${one.url} ${rate}`;
    if (name !== source && !(source === one.url && rate === one.rate)) {
      const at = source.startsWith(one.url) ? playhead.peek() : 0;
      const on = !audio.paused;
      const file = rate === one.rate ? one.bytes : withRate(one.bytes, rate);
      point(URL.createObjectURL(new Blob([file], { type: "audio/wav" })), name, rate / one.rate);
      if (at) seek(at);
      if (on) start();
    }
  }
  const fall = settings.pitch.peek() === "falls";
  audio.preservesPitch = !fall;
  audio.defaultPlaybackRate = audio.playbackRate = settings.speed.peek() / stretch;
  audio.loop = settings.loop.peek() && !part.peek();
}

function start(): void {
  audio.play().then(
    () => (silent.value = false),
    (error: DOMException) => {
      if (error.name === "NotAllowedError") silent.value = true;
      else if (error.name !== "AbortError") trouble.value = "The browser cannot play this sound.";
    },
  );
}

export function seek(seconds: number): void {
  playhead.value = seconds;
  audio.currentTime = seconds / stretch;
}

/** Play, from a place or from where it stands. */
export function play(from?: number): void {
  if (!source) return;
  const one = part.peek();
  if (from !== undefined) seek(from);
  else if (one && (playhead.peek() < one.from || playhead.peek() >= one.to - 0.01)) seek(one.from);
  start();
}

export function pause(): void {
  audio.pause();
}

export function toggle(): void {
  if (audio.paused) play();
  else pause();
}

/** Follow the element; at the end of a part begin it again, or stop. */
function follow(): void {
  if (!source) return;
  const at = audio.currentTime * stretch;
  const one = part.peek();
  playhead.value = at;
  if (!one || audio.paused || at < one.to) return;
  if (settings.loop.peek()) seek(one.from);
  else {
    audio.pause();
    seek(one.from);
  }
}

function frame(): void {
  follow();
  if (!audio.paused) requestAnimationFrame(frame);
}

audio.addEventListener("play", () => {
  playing.value = true;
  requestAnimationFrame(frame);
});
audio.addEventListener("timeupdate", follow);
for (const name of ["pause", "ended", "emptied"]) {
  audio.addEventListener(name, () => (playing.value = !audio.paused));
}

let turn = 0;

async function open(media: Place, context: number): Promise<void> {
  const mine = ++turn;
  const listen = settings.playAtOnce.peek() && (navigator.userActivation?.hasBeenActive ?? true);
  waiting.value = true;
  trouble.value = null;
  part.value = null;
  playhead.value = 0;
  audio.pause();
  try {
    const slow = settings.pitch.peek() === "falls" && settings.speed.peek() < 1;
    if (large(media, context) && !slow) {
      const url = address(media, context);
      point(url, url, 1);
      tune(null);
      if (listen) start();
    }
    const one = await fetchSound(media, context);
    if (mine !== turn) return;
    heard = one;
    tune(one);
    if (listen && audio.paused) start();
    else if (settings.playAtOnce.peek() && !listen) silent.value = true;
    if (listen) await begun();
    if (mine !== turn) return;
    sound.value = one;
  } catch (error) {
    if (mine !== turn) return;
    close();
    trouble.value = error instanceof Error ? error.message : String(error);
  }
  if (mine === turn) waiting.value = false;
}

const PATIENCE = 150; // milliseconds

/** Once the element plays, or does not so soon. */
function begun(): Promise<void> {
  return new Promise((done) => {
    const timer = setTimeout(done, PATIENCE);
    audio.addEventListener("playing", () => {
      clearTimeout(timer);
      done();
    }, { once: true });
  });
}

function close(): void {
  heard = null;
  audio.pause();
  audio.removeAttribute("src");
  audio.load();
  source = "";
  sound.value = null;
  part.value = null;
}

let opened = "";
effect(() => {
  const row = app.row.value;
  const context = settings.context.value;
  if (row && row.row !== app.current.peek()) return; // another is on its way
  const media = row?.media;
  if (!media || media.kind !== "audio" || !media.url || media.error) {
    turn++;
    opened = "";
    waiting.value = false;
    if (heard) close();
    return;
  }
  const name = `${row.row} ${context}`;
  if (name === opened) return; // the same row with newer marks, or opened early
  opened = name;
  void open(media, context);
});

const SHORT = 30; // seconds

/** Open the sound of a row of which a list knows enough, while all else of it is on its way. */
export function openEarly(one: RowShort): void {
  if (app.state.peek()?.modality !== "audio" || one.end === null || one.end - (one.start ?? 0) > SHORT) return;
  const context = settings.context.peek();
  const name = `${one.row} ${context}`;
  if (name === opened) return;
  opened = name;
  const url = `/media/audio?${new URLSearchParams({ id: one.id, region: one.region })}`;
  void open({ url, start: one.start, end: one.end }, context);
}

effect(() => {
  void [settings.speed.value, settings.pitch.value, settings.loop.value, part.value];
  tune(heard);
});
