/** Waveform and spectrogram of the current sound, with its axes, the region, and a part drawn in. */

import { useComputed, useSignal, useSignalEffect, type Signal } from "@preact/signals";
import { useEffect, useMemo, useRef } from "preact/hooks";
import { app } from "./app";
import { settings } from "./settings";
import { part, play, playhead, playing, seek, type Sound } from "./sound";
import { band, heightOf, hertzAt, picture, spectrum, ticks, usualWindow, type Band } from "./spectrum";

const HEIGHT = 220; // CSS pixels of the spectrogram
const MOST_COLUMNS = 2400;
const CLICK = 4; // pixels; a pointer that moved less did not draw

/** Width of an element in CSS pixels, as it changes. */
function useWidth(of: { current: HTMLElement | null }): Signal<number> {
  const width = useSignal(0);
  useEffect(() => {
    const watch = new ResizeObserver(([entry]) => (width.value = Math.round(entry!.contentRect.width)));
    watch.observe(of.current!);
    return () => watch.disconnect();
  }, []);
  return width;
}

const share = (one: Sound, seconds: number) => `${Math.max(0, Math.min(100, (100 * seconds) / one.seconds))}%`;

export function hertzWords(hertz: number): string {
  return hertz >= 1000 ? `${Number((hertz / 1000).toFixed(hertz < 10_000 ? 2 : 1))} kHz` : `${Math.round(hertz)} Hz`;
}

/** Steps of seconds that leave room to read the numbers. */
function seconds(one: Sound, width: number): number[] {
  const raw = one.seconds / Math.max(2, width / 70);
  const ten = 10 ** Math.floor(Math.log10(raw));
  const step = ten * ([1, 2, 5, 10].find((k) => k * ten >= raw) ?? 10);
  const found: number[] = [];
  for (let k = Math.ceil(one.begins / step - 1e-9); k * step <= one.begins + one.seconds; k++) found.push(k * step);
  return found;
}

function Waveform({ one, width }: { one: Sound; width: number }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const theme = app.theme.value;
  useEffect(() => {
    const to = canvas.current!;
    const columns = Math.min(MOST_COLUMNS, Math.round(width * devicePixelRatio));
    to.width = columns;
    to.height = Math.round(48 * devicePixelRatio);
    const pen = to.getContext("2d")!;
    pen.fillStyle = getComputedStyle(to).color;
    const middle = to.height / 2;
    const [low, high] = [new Float32Array(columns), new Float32Array(columns)];
    let loudest = 1e-4;
    for (let x = 0; x < columns; x++) {
      const last = Math.min(one.samples.length, Math.ceil(((x + 1) / columns) * one.samples.length));
      for (let i = Math.floor((x / columns) * one.samples.length); i < last; i++) {
        const value = one.samples[i]!;
        if (value < low[x]!) low[x] = value;
        else if (value > high[x]!) high[x] = value;
      }
      loudest = Math.max(loudest, -low[x]!, high[x]!);
    }
    const scale = (0.96 * middle) / loudest;
    for (let x = 0; x < columns; x++) {
      pen.fillRect(x, middle - high[x]! * scale, 1, Math.max(1, (high[x]! - low[x]!) * scale));
    }
  }, [one, width, theme]);
  return <canvas class="wave-canvas" ref={canvas} data-testid="waveform" role="img" aria-label="Waveform" />;
}

function Picture({ one, width, frame }: { one: Sound; width: number; frame: Band }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const size = settings.window.value || usualWindow(one.rate);
  const columns = Math.max(1, Math.min(MOST_COLUMNS, Math.round(width * devicePixelRatio)));
  const power = useMemo(() => spectrum(one.samples, one.rate, size, columns), [one, size, columns]);
  const contrast = settings.contrast.value;
  const palette = settings.palette.value;
  useEffect(() => {
    const to = canvas.current!;
    const rows = Math.round(HEIGHT * Math.min(2, devicePixelRatio));
    to.width = columns;
    to.height = rows;
    to.getContext("2d")!.putImageData(picture(power, frame, rows, contrast, palette), 0, 0);
  }, [power, frame.scale, frame.low, frame.high, contrast, palette]);
  const words = `Spectrogram, ${hertzWords(frame.low)} to ${hertzWords(frame.high)}`;
  return <canvas class="spectrogram-canvas" ref={canvas} data-testid="spectrogram" role="img" aria-label={words} />;
}

/** Bounds of the region and the shade over its context, the drawn part, and where it plays. */
function Overlays({ one }: { one: Sound }) {
  const head = useRef<HTMLDivElement>(null);
  useSignalEffect(() => {
    const at = playhead.value;
    if (head.current) head.current.style.transform = `translateX(${share(one, at)})`;
  });
  const [from, to] = one.region;
  const drawn = part.value;
  return (
    <>
      {from > 0.001 && <div class="shade before" style={{ left: 0, width: share(one, from) }} />}
      {to < one.seconds - 0.001 && <div class="shade after" style={{ left: share(one, to), right: 0 }} />}
      {drawn && (
        <div class="drawn" style={{ left: share(one, drawn.from), width: share(one, drawn.to - drawn.from) }} />
      )}
      <div class={`playhead ${playing.value ? "on" : ""}`} ref={head} />
    </>
  );
}

/** What pointers do on the sound: a click plays from there, a drag draws a part. */
function usePointer(one: Sound, readout: Signal<{ x: number; y: number } | null>) {
  const first = useRef<{ x: number; at: number } | null>(null);
  const place = (event: PointerEvent) => {
    const box = (event.currentTarget as HTMLElement).getBoundingClientRect();
    const x = Math.max(0, Math.min(1, (event.clientX - box.left) / box.width));
    return { x, y: 1 - (event.clientY - box.top) / box.height, at: x * one.seconds };
  };
  return {
    onPointerDown: (event: PointerEvent) => {
      if (event.button !== 0) return;
      (event.currentTarget as HTMLElement).setPointerCapture(event.pointerId);
      first.current = { x: event.clientX, at: place(event).at };
    },
    onPointerMove: (event: PointerEvent) => {
      const now = place(event);
      readout.value = { x: now.x, y: now.y };
      const begun = first.current;
      if (!begun || Math.abs(event.clientX - begun.x) < CLICK) return;
      part.value = { from: Math.min(begun.at, now.at), to: Math.max(begun.at, now.at) };
    },
    onPointerUp: (event: PointerEvent) => {
      const begun = first.current;
      first.current = null;
      if (!begun) return;
      if (Math.abs(event.clientX - begun.x) >= CLICK) {
        seek(part.value?.from ?? begun.at);
        return;
      }
      const drawn = part.value;
      if (drawn && (begun.at < drawn.from || begun.at > drawn.to)) part.value = null;
      play(begun.at);
    },
    onPointerCancel: () => (first.current = null),
    onPointerLeave: () => (readout.value = null),
  };
}

function Readout({ one, at, frame }: { one: Sound; at: Signal<{ x: number; y: number } | null>; frame: Band }) {
  const words = useComputed(() => {
    const where = at.value;
    if (!where) return "";
    const time = `${(one.begins + where.x * one.seconds).toFixed(3)} s`;
    return where.y < 0 || where.y > 1 ? time : `${time} · ${hertzWords(hertzAt(frame, where.y))}`;
  });
  return <span class={`readout ${words.value ? "" : "empty"}`}>{words}</span>;
}

function FrequencyAxis({ frame }: { frame: Band }) {
  return (
    <svg class="frequency-axis" aria-hidden="true">
      {ticks(frame, HEIGHT / 34).map((hertz) => {
        const y = `${100 * (1 - heightOf(frame, hertz))}%`;
        return (
          <g key={hertz}>
            <line x1="38" x2="42" y1={y} y2={y} />
            <text x="35" y={y} dy="0.35em" text-anchor="end">
              {hertz >= 1000 ? `${Number((hertz / 1000).toFixed(2))}k` : Number(hertz.toFixed(1))}
            </text>
          </g>
        );
      })}
    </svg>
  );
}

function TimeAxis({ one, width }: { one: Sound; width: number }) {
  return (
    <svg class="time-axis" aria-hidden="true">
      {seconds(one, width).map((at) => {
        const x = share(one, at - one.begins);
        const near = (at - one.begins) / one.seconds;
        return (
          <g key={at}>
            <line x1={x} x2={x} y1="0" y2="4" />
            <text x={x} y="15" text-anchor={near < 0.03 ? "start" : near > 0.97 ? "end" : "middle"}>
              {`${Number(at.toFixed(4))} s`}
            </text>
          </g>
        );
      })}
    </svg>
  );
}

/** Both pictures over one axis of time. */
export function SoundPictures({ one }: { one: Sound | null }) {
  const plot = useRef<HTMLDivElement>(null);
  const width = useWidth(plot);
  const readout = useSignal<{ x: number; y: number } | null>(null);
  const wave = useSignal<{ x: number; y: number } | null>(null);
  const frame = one && band(settings.scale.value, settings.low.value, settings.high.value, one.rate);
  const shown = one && frame && width.value > 0;
  return (
    <div class="sound-pictures">
      <div class="wave-plot">{shown && <WavePlot one={one} width={width.value} at={wave} frame={frame} />}</div>
      {frame ? <FrequencyAxis frame={frame} /> : <div class="frequency-axis" />}
      <div class="plot" ref={plot}>
        {shown && <SpectrogramPlot one={one} width={width.value} at={readout} frame={frame} />}
      </div>
      {shown ? <TimeAxis one={one} width={width.value} /> : <div class="time-axis" />}
    </div>
  );
}

interface Plot {
  one: Sound;
  width: number;
  at: Signal<{ x: number; y: number } | null>;
  frame: Band;
}

function WavePlot({ one, width, at }: Plot) {
  return (
    <div class="surface" {...usePointer(one, at)}>
      <Waveform one={one} width={width} />
      <Overlays one={one} />
    </div>
  );
}

function SpectrogramPlot({ one, width, at, frame }: Plot) {
  return (
    <div class="surface" {...usePointer(one, at)}>
      <Picture one={one} width={width} frame={frame} />
      <Overlays one={one} />
      <Readout one={one} at={at} frame={frame} />
    </div>
  );
}
