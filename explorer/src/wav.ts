/** WAV files: read and written here, since an AudioContext would resample what it decodes. */

export interface Wav {
  rate: number; // Hz
  samples: Float32Array; // of all channels mixed, -1 to 1
}

const HEADER = 44;

function tag(view: DataView, at: number): string {
  return String.fromCharCode(...[0, 1, 2, 3].map((k) => view.getUint8(at + k)));
}

/** Where the chunks "fmt " and "data" begin, behind their names and sizes. */
function chunks(view: DataView): { format: number; data: number; size: number } {
  if (view.byteLength < HEADER || tag(view, 0) !== "RIFF" || tag(view, 8) !== "WAVE") {
    throw new Error("The server's answer is no WAV file.");
  }
  let format = 0;
  for (let at = 12; at + 8 <= view.byteLength; ) {
    const size = view.getUint32(at + 4, true);
    const name = tag(view, at);
    if (name === "fmt ") format = at + 8;
    if (name === "data" && format) {
      return { format, data: at + 8, size: Math.min(size, view.byteLength - at - 8) };
    }
    at += 8 + size + (size % 2);
  }
  throw new Error("The WAV file holds no sound.");
}

/** Samples of a WAV file of 16 bits. */
export function decode(bytes: ArrayBuffer): Wav {
  const view = new DataView(bytes);
  const { format, data, size } = chunks(view);
  const channels = view.getUint16(format + 2, true);
  const rate = view.getUint32(format + 4, true);
  const bits = view.getUint16(format + 14, true);
  if (bits !== 16) throw new Error(`The WAV file has ${bits} bits a sample; 16 can be drawn.`);
  const count = Math.floor(size / (2 * channels)) * channels;
  const values = new Int16Array(data % 2 ? bytes.slice(data, data + 2 * count) : bytes, data % 2 ? 0 : data, count);
  const samples = new Float32Array(values.length / channels);
  const scale = 1 / (32768 * channels);
  for (let i = 0, k = 0; i < samples.length; i++) {
    let sum = 0;
    for (let c = 0; c < channels; c++) sum += values[k++] as number;
    samples[i] = sum * scale;
  }
  return { rate, samples };
}

/** The same samples under another rate: slower and lower by the same factor. */
export function withRate(bytes: ArrayBuffer, rate: number): ArrayBuffer {
  const copy = bytes.slice(0);
  const view = new DataView(copy);
  const { format } = chunks(view);
  const frame = view.getUint16(format + 12, true);
  view.setUint32(format + 4, rate, true);
  view.setUint32(format + 8, rate * frame, true);
  return copy;
}

/** A WAV file of one channel and 16 bits. */
export function encode({ rate, samples }: Wav): Blob {
  const bytes = new ArrayBuffer(HEADER + 2 * samples.length);
  const view = new DataView(bytes);
  const text = (at: number, words: string) =>
    [...words].forEach((letter, k) => view.setUint8(at + k, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, bytes.byteLength - 8, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, rate, true);
  view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, 2 * samples.length, true);
  samples.forEach((value, i) => {
    const bounded = Math.max(-1, Math.min(1, value));
    view.setInt16(HEADER + 2 * i, Math.round(bounded * 32767), true);
  });
  return new Blob([bytes], { type: "audio/wav" });
}
