/** Pictures with their tile, frames of videos, texts with their part. */

import { useSignal, useSignalEffect } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import type { Media, Row } from "./types";

interface View {
  x: number;
  y: number;
  width: number;
  height: number;
}

const CLOSEST = 24; // pixels of the picture across the view

function bounded(view: View, all: View): View {
  const width = Math.max(Math.min(CLOSEST, all.width), Math.min(all.width, view.width));
  const height = (width * all.height) / all.width;
  return {
    width,
    height,
    x: Math.max(0, Math.min(all.width - width, view.x)),
    y: Math.max(0, Math.min(all.height - height, view.y)),
  };
}

function zoomed(view: View, all: View, factor: number, at: { x: number; y: number }): View {
  const width = Math.max(Math.min(CLOSEST, all.width), Math.min(all.width, view.width / factor));
  const height = (width * all.height) / all.width;
  return bounded({ width, height, x: at.x - ((at.x - view.x) * width) / view.width, y: at.y - ((at.y - view.y) * height) / view.height }, all);
}

/** The tile with some of what lies around it. */
function around(box: NonNullable<Media["box"]>, all: View): View {
  const [left, top, right, bottom] = box;
  const width = Math.max(1.3 * (right - left), (1.3 * (bottom - top) * all.width) / all.height);
  const height = (width * all.height) / all.width;
  return bounded({ width, height, x: (left + right - width) / 2, y: (top + bottom - height) / 2 }, all);
}

/** Address of a picture in another size. */
function sized(url: string, size: number): string {
  const [path, words] = url.split("?");
  const query = new URLSearchParams(words);
  query.set("size", String(size));
  return `${path}?${query}`;
}

function centre(view: View): { x: number; y: number } {
  return { x: view.x + view.width / 2, y: view.y + view.height / 2 };
}

function Zoomed({ media, name }: { media: Media; name: string }) {
  const all: View = { x: 0, y: 0, width: media.width ?? 640, height: media.height ?? 480 };
  const view = useSignal(all);
  const failed = useSignal(false);
  const drag = useRef<{ x: number; y: number; view: View } | null>(null);
  const place = useRef<SVGSVGElement>(null);
  const whole = view.value.width >= all.width;
  const scale = () => view.value.width / place.current!.getBoundingClientRect().width; // of one pixel on the screen
  useEffect(() => {
    const wheel = (event: WheelEvent) => {
      event.preventDefault();
      const box = place.current!.getBoundingClientRect();
      const at = { x: view.value.x + (event.clientX - box.left) * scale(), y: view.value.y + (event.clientY - box.top) * scale() };
      view.value = zoomed(view.value, all, Math.exp(-event.deltaY / 300), at);
    };
    place.current!.addEventListener("wheel", wheel, { passive: false });
    return () => place.current?.removeEventListener("wheel", wheel);
  }, [all.width, all.height]);
  useSignalEffect(() => void (view.value && (failed.value = false)));
  const { x, y, width, height } = view.value;
  const [left, top, right, bottom] = media.box ?? [0, 0, 0, 0];
  const url = media.url!;
  const size = Math.min(4096, 512 * 2 ** Math.max(1, Math.ceil(Math.log2(all.width / width)))); // sharper when nearer
  const zoom = (factor: number) => () => (view.value = zoomed(view.value, all, factor, centre(view.value)));
  return (
    <div class="picture-view">
      <svg
        ref={place}
        class={whole ? "" : "near"}
        viewBox={`${x} ${y} ${width} ${height}`}
        data-testid="picture"
        role="img"
        aria-label={media.box ? `${name}, with its tile` : name}
        onDblClick={() => (view.value = whole && media.box ? around(media.box, all) : all)}
        onPointerDown={(event) => {
          if (whole) return;
          event.currentTarget.setPointerCapture(event.pointerId);
          drag.current = { x: event.clientX, y: event.clientY, view: view.value };
        }}
        onPointerMove={(event) => {
          const from = drag.current;
          if (!from) return;
          const moved = { x: from.view.x - (event.clientX - from.x) * scale(), y: from.view.y - (event.clientY - from.y) * scale() };
          view.value = bounded({ ...from.view, ...moved }, all);
        }}
        onPointerUp={() => (drag.current = null)}
        onPointerCancel={() => (drag.current = null)}
      >
        <image href={sized(url, 1024)} width={all.width} height={all.height} preserveAspectRatio="none" onError={() => (failed.value = true)} />
        {size > 1024 && <image href={sized(url, size)} width={all.width} height={all.height} preserveAspectRatio="none" />}
        {media.box && (
          <>
            <path class="tile-shade" d={`M0 0H${all.width}V${all.height}H0ZM${left} ${top}V${bottom}H${right}V${top}Z`} fill-rule="evenodd" />
            <rect class="tile-box under" x={left} y={top} width={right - left} height={bottom - top} />
            <rect class="tile-box" data-testid="tile-box" x={left} y={top} width={right - left} height={bottom - top} />
          </>
        )}
      </svg>
      {failed.value && <p class="trouble">The picture could not be shown.</p>}
      <div class="picture-tools">
        <button type="button" class="icon-button" aria-label="Nearer" data-testid="zoom-in" onClick={zoom(1.6)}>
          <svg viewBox="0 0 24 24" aria-hidden="true"><path d="M12 5v14M5 12h14" /></svg>
        </button>
        <button type="button" class="icon-button" aria-label="Farther" data-testid="zoom-out" disabled={whole} onClick={zoom(1 / 1.6)}>
          <svg viewBox="0 0 24 24" aria-hidden="true"><path d="M5 12h14" /></svg>
        </button>
        <button type="button" class="button" data-testid="zoom-all" disabled={whole} onClick={() => (view.value = all)}>Whole</button>
        {media.box && (
          <button type="button" class="button" data-testid="zoom-tile" onClick={() => (view.value = around(media.box!, all))}>Tile</button>
        )}
        <span class="soft small">{media.width && media.height ? `${media.width} × ${media.height}` : ""}</span>
      </div>
    </div>
  );
}

export function Picture({ row }: { row: Row }) {
  return <Zoomed key={row.id} media={row.media} name={row.id} />;
}

/** The frames of a video's part as a strip, one of them large. */
export function Frames({ row }: { row: Row }) {
  const at = useSignal(0);
  const frames = row.media.frames.length ? row.media.frames : row.media.url ? [row.media.url] : [];
  const now = Math.min(at.value, frames.length - 1);
  if (now < 0) return <p class="trouble">This video has no frames to show.</p>;
  return (
    <div class="frames" data-testid="frames">
      <img class="frame-large" data-testid="picture" src={frames[now]} alt={`Frame ${now + 1} of ${frames.length} of ${row.id}`} />
      <ol class="strip">
        {frames.map((url, i) => (
          <li key={url}>
            <button type="button" data-testid="frame" aria-label={`Frame ${i + 1}`} aria-pressed={i === now} onClick={() => (at.value = i)}>
              <img src={url} alt="" loading="lazy" />
            </button>
          </li>
        ))}
      </ol>
    </div>
  );
}

const CHARS = /chars:(\d+)-(\d+)/;

/** A text; where the row is a window of it, that part stands out. */
export function Text({ row }: { row: Row }) {
  const text = row.media.text ?? row.text ?? "";
  const found = CHARS.exec(row.region);
  const letters = [...text]; // the server counts characters, not the units of a JavaScript string
  const [from, to] = found ? [Number(found[1]), Number(found[2])] : [0, letters.length];
  if (!found || letters.length <= to - from) return <blockquote class="text" data-testid="text">{text}</blockquote>;
  return (
    <blockquote class="text" data-testid="text">
      <span class="soft">{letters.slice(0, from).join("")}</span>
      <mark ref={(part) => void part?.scrollIntoView({ block: "nearest" })}>{letters.slice(from, to).join("")}</mark>
      <span class="soft">{letters.slice(to).join("")}</span>
    </blockquote>
  );
}
