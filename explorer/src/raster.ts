/** Points drawn by the processor: at once, and faster than WebGL2 where no graphics card draws. */

import type { Camera } from "./camera";
import { packed, type Rgb } from "./palette";
import type { Drawer, Layer } from "./scene";

const MARGIN = 40; // pixels around the picture, so that points at its edge need no care
const SQUARE = 2.5; // pixels across, below which a point is a square

/** A pixel of a disc: how far it is from the middle one, how much of it is covered, by rim or light. */
interface Disc {
  away: Int32Array;
  cover: Int32Array; // of 256
  light: Int32Array; // of 256; the rest is rim
}

/** Two packed colours, mixed: `share` of 256 of the upper. */
function over(under: number, upper: number, share: number): number {
  const rest = 256 - share;
  const redBlue = (((upper & 0xff00ff) * share + (under & 0xff00ff) * rest) >>> 8) & 0xff00ff;
  const green = (((upper & 0xff00) * share + (under & 0xff00) * rest) >>> 8) & 0xff00;
  return (0xff000000 | redBlue | green) >>> 0;
}

function disc(size: number, opacity: number, rimWidth: number, stride: number): Disc {
  const [away, cover, light]: number[][] = [[], [], []];
  const reach = Math.ceil(size / 2);
  for (let y = -reach; y <= reach; y++) {
    for (let x = -reach; x <= reach; x++) {
      const inside = size / 2 - Math.hypot(x, y);
      if (inside <= 0) continue;
      away.push(y * stride + x);
      cover.push(Math.round(256 * opacity * Math.min(1, inside)));
      light.push(Math.round(256 * Math.min(1, Math.max(0, inside - rimWidth + 0.5))));
    }
  }
  return { away: Int32Array.from(away), cover: Int32Array.from(cover), light: Int32Array.from(light) };
}

export class Raster implements Drawer {
  private x = new Float32Array(0);
  private y = new Float32Array(0);
  private paint = new Uint32Array(0);
  private order = new Uint32Array(0);
  private image = new ImageData(1, 1);
  private pixels = new Uint32Array(1);

  constructor(private readonly canvas: HTMLCanvasElement) {}

  setPlaces(x: Float32Array, y: Float32Array): void {
    this.x = x as Float32Array<ArrayBuffer>;
    this.y = y as Float32Array<ArrayBuffer>;
  }

  setPaint(paint: Uint8Array<ArrayBuffer>): void {
    this.paint = new Uint32Array(paint.buffer);
  }

  setOrder(order: Uint32Array<ArrayBuffer>): void {
    this.order = order;
  }

  draw(camera: Camera, density: number, background: Rgb, layers: Layer[], share: number): void {
    const [width, height] = [Math.round(camera.width * density), Math.round(camera.height * density)];
    this.fitTo(width, height);
    this.pixels.fill(packed(background));
    let from = 0;
    for (const layer of layers) {
      const part = this.order.subarray(from, from + Math.ceil(layer.count * share));
      if (layer.size * density < SQUARE) this.squares(camera, density, layer, part);
      else this.discs(camera, density, layer, part);
      from += layer.count;
    }
    this.canvas.getContext("2d", { alpha: false })?.putImageData(this.image, -MARGIN, -MARGIN);
  }

  finish(): void {
    // drawn already
  }

  private fitTo(width: number, height: number): void {
    if (this.canvas.width !== width || this.canvas.height !== height) {
      this.canvas.width = width;
      this.canvas.height = height;
    }
    if (this.image.width === width + 2 * MARGIN && this.image.height === height + 2 * MARGIN) return;
    this.image = new ImageData(width + 2 * MARGIN, height + 2 * MARGIN);
    this.pixels = new Uint32Array(this.image.data.buffer);
  }

  /** Where a point's pixel is in `pixels`, for each that is in the picture or near it. */
  private each(camera: Camera, density: number, part: Uint32Array, run: (at: number, colour: number) => void): void {
    const { x, y, paint } = this;
    const { width: stride, height: lines } = this.image;
    const factor = camera.scale * density;
    const left = (camera.width * density) / 2 - camera.x * factor + MARGIN;
    const top = (camera.height * density) / 2 + camera.y * factor + MARGIN;
    const edge = MARGIN / 2;
    for (let i = 0; i < part.length; i++) {
      const point = part[i];
      const column = (x[point] * factor + left) | 0;
      const line = (top - y[point] * factor) | 0;
      if (column < edge || line < edge || column >= stride - edge || line >= lines - edge) continue;
      run(line * stride + column, paint[point]);
    }
  }

  private squares(camera: Camera, density: number, layer: Layer, part: Uint32Array): void {
    const { pixels } = this;
    const stride = this.image.width;
    const side = Math.max(1, Math.round(layer.size * density));
    const cover = Math.round(256 * layer.opacity);
    this.each(camera, density, part, (at, colour) => {
      for (let line = 0; line < side; line++) {
        for (let column = 0; column < side; column++) {
          const pixel = at + line * stride + column;
          pixels[pixel] = over(pixels[pixel], colour, cover);
        }
      }
    });
  }

  private discs(camera: Camera, density: number, layer: Layer, part: Uint32Array): void {
    const { pixels } = this;
    const size = Math.min(layer.size * density, MARGIN - 2);
    const { away, cover, light } = disc(size, layer.opacity, layer.rimWidth * density, this.image.width);
    const rim = packed(layer.rim);
    this.each(camera, density, part, (at, colour) => {
      for (let i = 0; i < away.length; i++) {
        const pixel = at + away[i];
        const upper = light[i] < 256 && layer.rimWidth > 0 ? over(rim, colour, light[i]) : colour;
        pixels[pixel] = over(pixels[pixel], upper, cover[i]);
      }
    });
  }
}
