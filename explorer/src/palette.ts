/** Colours of points: a dozen for categories, told apart in every kind of colour sight, then the
 * same darker and lighter; a scale for numbers. Found by a search for the largest least distance
 * of two colours (OKLab; normal sight and three kinds of colour blindness). */

export type Rgb = readonly [number, number, number];
export type Theme = "light" | "dark";

export function rgb(text: string): Rgb {
  const value = Number.parseInt(text.slice(1), 16);
  return [value >> 16, (value >> 8) & 255, value & 255];
}

export function css([r, g, b]: Rgb): string {
  return `rgb(${Math.round(r)} ${Math.round(g)} ${Math.round(b)})`;
}

/** A colour as four bytes, the last opaque, in the order of this machine. */
export function packed([r, g, b]: Rgb): number {
  return new Uint32Array(new Uint8Array([r, g, b, 255]).buffer)[0];
}

export function mix(a: Rgb, b: Rgb, share: number): Rgb {
  return [a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share, a[2] + (b[2] - a[2]) * share];
}

const CATEGORIES: Record<Theme, Rgb[]> = {
  light: ["#41adff", "#4f5207", "#fb8819", "#0070ae", "#84556a", "#a5b18a", "#82017c", "#4630b5", "#d54f3a", "#8465ee", "#109987", "#d17fc6"].map(rgb),
  dark: ["#54859a", "#d3e994", "#9e6f00", "#b2e4fb", "#c15a6f", "#bac000", "#ff9ecb", "#9aa5fc", "#e08144", "#597eff", "#61b08f", "#bb71cb"].map(rgb),
};

const SHADES = [0, -0.38, 0.42]; // towards black, towards white

/** The colour of the category that stands at `rank` in the legend. */
export function category(rank: number, theme: Theme): Rgb {
  const colours = CATEGORIES[theme];
  const colour = colours[rank % colours.length];
  const shade = SHADES[Math.floor(rank / colours.length) % SHADES.length];
  return mix(colour, shade < 0 ? [0, 0, 0] : [255, 255, 255], Math.abs(shade));
}

const VIRIDIS = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"].map(rgb);

/** The scale for numbers, at `share` from 0 to 1; less of its end that is near the background. */
export function scale(share: number, theme: Theme): Rgb {
  const within = theme === "light" ? 0.92 * share : 0.14 + 0.86 * share;
  const at = Math.min(1, Math.max(0, within)) * (VIRIDIS.length - 1);
  const from = Math.min(VIRIDIS.length - 2, Math.floor(at));
  return mix(VIRIDIS[from], VIRIDIS[from + 1], at - from);
}
