/** Power over time and frequency, and its picture. */

export type Scale = "linear" | "log" | "mel";
export type Palette = "magma" | "viridis" | "grey";

export interface Spectrum {
  columns: number;
  bins: number; // from 0 Hz to half the rate, both with it
  rate: number;
  power: Float32Array; // dB of full scale; columns, one behind the other
}

/** A Fourier transform of `size` (a power of two), in place. */
function transform(size: number): (re: Float32Array, im: Float32Array) => void {
  const cos = new Float32Array(size / 2);
  const sin = new Float32Array(size / 2);
  for (let k = 0; k < size / 2; k++) {
    cos[k] = Math.cos((2 * Math.PI * k) / size);
    sin[k] = -Math.sin((2 * Math.PI * k) / size);
  }
  const reversed = new Uint32Array(size);
  const bits = Math.log2(size);
  for (let i = 0; i < size; i++) {
    reversed[i] = ((reversed[i >> 1] as number) >> 1) | ((i & 1) << (bits - 1));
  }
  return (re, im) => {
    for (let i = 0; i < size; i++) {
      const j = reversed[i] as number;
      if (j > i) {
        [re[i], re[j]] = [re[j]!, re[i]!];
        [im[i], im[j]] = [im[j]!, im[i]!];
      }
    }
    for (let half = 1; half < size; half <<= 1) {
      const step = size / (2 * half);
      for (let first = 0; first < size; first += 2 * half) {
        for (let k = 0, a = first, b = first + half; k < half; k++, a++, b++) {
          const c = cos[k * step]!;
          const s = sin[k * step]!;
          const real = re[b]! * c - im[b]! * s;
          const imaginary = re[b]! * s + im[b]! * c;
          re[b] = re[a]! - real;
          im[b] = im[a]! - imaginary;
          re[a] = re[a]! + real;
          im[a] = im[a]! + imaginary;
        }
      }
    }
  };
}

/** A window length that suits a rate: 16 to 32 ms of what is heard, some 3 ms of ultrasound. */
export function usualWindow(rate: number): number {
  if (rate <= 12_000) return 256;
  return rate <= 25_000 ? 512 : 1024;
}

const MOST_FRAMES = 4; // of a column, where the columns are far apart

/** The spectrum of samples in so many columns. Where a column is longer than a window, it holds the
 * strongest of several windows, so that a short call is not lost between two. */
export function spectrum(samples: Float32Array, rate: number, window: number, columns: number): Spectrum {
  const size = window <= 512 ? 2 * window : window; // zeros behind it: a smoother picture
  const bins = size / 2 + 1;
  const power = new Float32Array(columns * bins).fill(-200);
  const hann = new Float32Array(window);
  let sum = 0;
  for (let i = 0; i < window; i++) sum += hann[i] = 0.5 - 0.5 * Math.cos((2 * Math.PI * (i + 0.5)) / window);
  for (let i = 0; i < window; i++) hann[i] = (2 * hann[i]!) / sum;
  const hop = samples.length / columns;
  const frames = Math.max(1, Math.min(MOST_FRAMES, Math.round((2 * hop) / window)));
  const fft = transform(size);
  const re = new Float32Array(size);
  const im = new Float32Array(size);
  const fill = (into: Float32Array, frame: number) => {
    const first = Math.round(((frame + 0.5) / frames) * hop - window / 2);
    into.fill(0);
    for (let i = Math.max(0, -first); i < window && first + i < samples.length; i++) {
      into[i] = samples[first + i]! * hann[i]!;
    }
  };
  const keep = (column: number, bin: number, real: number, imaginary: number) => {
    const value = 10 * Math.log10(real * real + imaginary * imaginary + 1e-20);
    const at = column * bins + bin;
    if (value > power[at]!) power[at] = value;
  };
  const all = columns * frames;
  for (let frame = 0; frame < all; frame += 2) { // two frames in one transform: real and imaginary
    fill(re, frame);
    if (frame + 1 < all) fill(im, frame + 1);
    else im.fill(0);
    fft(re, im);
    const one = Math.floor(frame / frames);
    const two = Math.min(columns - 1, Math.floor((frame + 1) / frames));
    for (let k = 0; k < bins; k++) {
      const m = k === 0 ? 0 : size - k;
      keep(one, k, (re[k]! + re[m]!) / 2, (im[k]! - im[m]!) / 2);
      if (frame + 1 < all) keep(two, k, (im[k]! + im[m]!) / 2, (re[m]! - re[k]!) / 2);
    }
  }
  return { columns, bins, rate, power };
}

function up(scale: Scale, hertz: number): number {
  if (scale === "linear") return hertz;
  return scale === "log" ? Math.log(Math.max(hertz, 1)) : Math.log1p(hertz / 700);
}

/** What is drawn: a band of frequencies on a scale. */
export interface Band {
  scale: Scale;
  low: number;
  high: number;
}

/** The band that can be drawn of what was asked: a logarithm has no zero, and half the rate is all. */
export function band(scale: Scale, low: number | null, high: number | null, rate: number): Band {
  const top = Math.min(high || rate / 2, rate / 2);
  const least = scale === "log" ? Math.min(50, top / 4) : 0;
  const bottom = Math.max(low ?? 0, least);
  return bottom < top ? { scale, low: bottom, high: top } : { scale, low: least, high: rate / 2 };
}

/** Frequency at a height, 0 below to 1 above; and back. */
export function hertzAt({ scale, low, high }: Band, height: number): number {
  const value = up(scale, low) + height * (up(scale, high) - up(scale, low));
  if (scale === "linear") return value;
  return scale === "log" ? Math.exp(value) : 700 * Math.expm1(value);
}

export function heightOf({ scale, low, high }: Band, hertz: number): number {
  return (up(scale, hertz) - up(scale, low)) / (up(scale, high) - up(scale, low));
}

/** Round frequencies to write at an axis with room for `most`. */
export function ticks(one: Band, most: number): number[] {
  const found: number[] = [];
  if (one.scale === "linear") {
    const raw = (one.high - one.low) / most;
    const ten = 10 ** Math.floor(Math.log10(raw));
    const step = ten * ([1, 2, 5, 10].find((k) => k * ten >= raw) ?? 10);
    for (let f = Math.ceil(one.low / step) * step; f <= one.high; f += step) found.push(f);
    return found;
  }
  for (let ten = 10; ten < one.high; ten *= 10) {
    for (const k of [1, 2, 5]) {
      const f = k * ten;
      const far = found.every((g) => Math.abs(heightOf(one, g) - heightOf(one, f)) > 0.8 / most);
      if (f >= one.low && f <= one.high && far) found.push(f);
    }
  }
  return found;
}

// Polynomials of the sixth degree through the palettes of matplotlib, lowest power first.
const CURVES: Record<"magma" | "viridis", number[][]> = {
  magma: [
    [-0.002136, -0.000749, -0.005386],
    [0.25166, 0.677523, 2.494026],
    [8.353717, -3.577719, 0.314467],
    [-27.668733, 14.264730, -13.649213],
    [52.176139, -27.943606, 12.944169],
    [-50.768525, 29.046582, 4.234152],
    [18.655705, -11.489773, -5.601961],
  ],
  viridis: [
    [0.277727, 0.005407, 0.334099],
    [0.105093, 1.404613, 1.384590],
    [-0.330861, 0.214847, 0.095095],
    [-4.634230, -5.799100, -19.332440],
    [6.228269, 14.179933, 56.690552],
    [4.776384, -13.745145, -65.353032],
    [-5.435455, 4.645852, 26.312435],
  ],
};

/** 256 colours, each four bytes as one number. */
function colours(palette: Palette): Uint32Array {
  const table = new Uint32Array(256);
  for (let i = 0; i < 256; i++) {
    const t = i / 255;
    const rgb =
      palette === "grey"
        ? [1 - t, 1 - t, 1 - t]
        : [0, 1, 2].map((c) => CURVES[palette].reduceRight((sum, row) => sum * t + row[c]!, 0));
    const [r, g, b] = rgb.map((v) => Math.round(255 * Math.max(0, Math.min(1, v))));
    table[i] = (255 << 24) | (b! << 16) | (g! << 8) | r!;
  }
  return table;
}

/** The loudness that is drawn brightest, and what lies in the background: dB. */
export function levels(of: Spectrum, one: Band): { top: number; floor: number } {
  const first = Math.max(0, Math.floor((one.low / (of.rate / 2)) * (of.bins - 1)));
  const last = Math.min(of.bins - 1, Math.ceil((one.high / (of.rate / 2)) * (of.bins - 1)));
  const values: number[] = [];
  const step = Math.max(1, Math.floor((of.columns * (last - first + 1)) / 20_000));
  for (let i = 0, n = of.columns * (last - first + 1); i < n; i += step) {
    const column = Math.floor(i / (last - first + 1));
    const value = of.power[column * of.bins + first + (i % (last - first + 1))]!;
    if (value > -150) values.push(value); // silence of zeros says nothing about the background
  }
  values.sort((a, b) => a - b);
  if (!values.length) return { top: 0, floor: -100 };
  const at = (part: number) => values[Math.min(values.length - 1, Math.floor(part * values.length))]!;
  return { top: at(0.999), floor: at(0.3) };
}

/** A picture of so many rows. contrast: 0, all that is there, to 1, the loudest alone. */
export function picture(
  of: Spectrum,
  one: Band,
  rows: number,
  contrast: number,
  palette: Palette,
): ImageData {
  const image = new ImageData(of.columns, rows);
  const pixels = new Uint32Array(image.data.buffer);
  const table = colours(palette);
  const { top, floor } = levels(of, one);
  const wide = Math.max(top - floor + 12, 40); // at contrast 0: the background is well seen
  const range = wide + contrast * (18 - wide);
  const perHertz = (of.bins - 1) / (of.rate / 2);
  for (let y = 0; y < rows; y++) {
    const from = hertzAt(one, 1 - (y + 1) / rows) * perHertz;
    const to = hertzAt(one, 1 - y / rows) * perHertz;
    for (let x = 0; x < of.columns; x++) {
      const value = between(of.power, x * of.bins, of.bins, from, to);
      const part = Math.max(0, Math.min(1, 1 + (value - top) / range));
      pixels[y * of.columns + x] = table[Math.round(255 * part)]!;
    }
  }
  return image;
}

/** Power between two places among the bins: the strongest of several, or a straight line. */
function between(power: Float32Array, first: number, bins: number, from: number, to: number): number {
  if (to - from > 1) {
    let most = -200;
    for (let k = Math.ceil(from); k <= to && k < bins; k++) most = Math.max(most, power[first + k]!);
    return most;
  }
  const middle = Math.min(bins - 1, Math.max(0, (from + to) / 2));
  const k = Math.min(bins - 2, Math.floor(middle));
  return power[first + k]! + (middle - k) * (power[first + k + 1]! - power[first + k]!);
}
