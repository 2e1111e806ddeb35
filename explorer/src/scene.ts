/** Points drawn by WebGL2. */

import type { Camera } from "./camera";
import type { Rgb } from "./palette";

const VERTEX = `#version 300 es
layout(location = 0) in vec2 place;
layout(location = 1) in vec4 paint;
uniform vec4 view; // factors and offsets, to clip space
uniform float size;
out vec4 colour;
void main() {
  colour = paint;
  gl_Position = vec4(place * view.xy + view.zw, 0.0, 1.0);
  gl_PointSize = size;
}`;

const FRAGMENT = `#version 300 es
precision highp float;
in vec4 colour;
uniform float size;
uniform float opacity;
uniform vec4 rim; // colour, and width in pixels
out vec4 pixel;
void main() {
  float alpha = colour.a * opacity;
  vec3 light = colour.rgb;
  if (size > 2.5) {
    float inside = 0.5 * size - length(gl_PointCoord - 0.5) * size;
    if (inside <= 0.0) discard;
    light = mix(rim.rgb, light, smoothstep(rim.w - 0.5, rim.w + 0.5, inside));
    alpha *= min(inside, 1.0);
  }
  pixel = vec4(light * alpha, alpha);
}`;

/** What draws points. */
export interface Drawer {
  setPlaces(x: Float32Array, y: Float32Array): void;
  /** paint: four bytes a point. */
  setPaint(paint: Uint8Array<ArrayBuffer>): void;
  /** order: numbers of points, as they are drawn. */
  setOrder(order: Uint32Array<ArrayBuffer>): void;
  /** Draw the layers, one behind the other in `order`. share: of each layer's points. */
  draw(camera: Camera, density: number, background: Rgb, layers: Layer[], share: number): void;
  /** Wait until all is drawn: for measuring. */
  finish(): void;
}

const BY_PROCESSOR = /swiftshader|llvmpipe|softpipe|software|basic render/i;

/** Part of the points that is drawn alike: so many of `order`, in pixels of the screen. */
export interface Layer {
  count: number;
  size: number;
  opacity: number;
  rim: Rgb;
  rimWidth: number;
}

function shader(gl: WebGL2RenderingContext, kind: number, text: string): WebGLShader {
  const made = gl.createShader(kind);
  if (!made) throw new Error("no shader");
  gl.shaderSource(made, text);
  gl.compileShader(made);
  return made;
}

function program(gl: WebGL2RenderingContext): WebGLProgram {
  const made = gl.createProgram();
  if (!made) throw new Error("no program");
  gl.attachShader(made, shader(gl, gl.VERTEX_SHADER, VERTEX));
  gl.attachShader(made, shader(gl, gl.FRAGMENT_SHADER, FRAGMENT));
  gl.linkProgram(made);
  if (!gl.getProgramParameter(made, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(made) ?? "link");
  return made;
}

export class Scene implements Drawer {
  private readonly places: WebGLBuffer | null;
  private readonly paints: WebGLBuffer | null;
  private readonly order: WebGLBuffer | null;
  private readonly at: Record<"view" | "size" | "opacity" | "rim", WebGLUniformLocation | null>;
  private readonly largest: number;

  private constructor(private readonly gl: WebGL2RenderingContext) {
    const drawn = program(gl);
    gl.useProgram(drawn);
    this.at = {
      view: gl.getUniformLocation(drawn, "view"),
      size: gl.getUniformLocation(drawn, "size"),
      opacity: gl.getUniformLocation(drawn, "opacity"),
      rim: gl.getUniformLocation(drawn, "rim"),
    };
    this.largest = (gl.getParameter(gl.ALIASED_POINT_SIZE_RANGE) as Float32Array)[1] ?? 64;
    this.places = gl.createBuffer();
    this.paints = gl.createBuffer();
    this.order = gl.createBuffer();
    gl.bindBuffer(gl.ARRAY_BUFFER, this.places);
    gl.enableVertexAttribArray(0);
    gl.vertexAttribPointer(0, 2, gl.FLOAT, false, 0, 0);
    gl.bindBuffer(gl.ARRAY_BUFFER, this.paints);
    gl.enableVertexAttribArray(1);
    gl.vertexAttribPointer(1, 4, gl.UNSIGNED_BYTE, true, 0, 0);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, this.order);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
  }

  /** A scene on the canvas; null where the browser has no WebGL2, or none by a graphics card
   * (unless that is `enough`). */
  static on(canvas: HTMLCanvasElement, enough: boolean): Scene | null {
    const wanted: WebGLContextAttributes = { alpha: false, antialias: false, depth: false, failIfMajorPerformanceCaveat: !enough };
    const gl = canvas.getContext("webgl2", wanted) as WebGL2RenderingContext | null;
    if (!gl) return null;
    const names = gl.getExtension("WEBGL_debug_renderer_info");
    const by = String(gl.getParameter(names?.UNMASKED_RENDERER_WEBGL ?? gl.RENDERER));
    if (!enough && BY_PROCESSOR.test(by)) {
      gl.getExtension("WEBGL_lose_context")?.loseContext();
      return null;
    }
    try {
      return new Scene(gl);
    } catch (error) {
      console.error(error);
      return null;
    }
  }

  setPlaces(x: Float32Array, y: Float32Array): void {
    const pairs = new Float32Array(2 * x.length);
    for (let i = 0; i < x.length; i++) {
      pairs[2 * i] = x[i];
      pairs[2 * i + 1] = y[i];
    }
    this.gl.bindBuffer(this.gl.ARRAY_BUFFER, this.places);
    this.gl.bufferData(this.gl.ARRAY_BUFFER, pairs, this.gl.STATIC_DRAW);
  }

  /** paint: four bytes a point. */
  setPaint(paint: Uint8Array<ArrayBuffer>): void {
    this.gl.bindBuffer(this.gl.ARRAY_BUFFER, this.paints);
    this.gl.bufferData(this.gl.ARRAY_BUFFER, paint, this.gl.DYNAMIC_DRAW);
  }

  /** order: numbers of points, as they are drawn. */
  setOrder(order: Uint32Array<ArrayBuffer>): void {
    this.gl.bindBuffer(this.gl.ELEMENT_ARRAY_BUFFER, this.order);
    this.gl.bufferData(this.gl.ELEMENT_ARRAY_BUFFER, order, this.gl.DYNAMIC_DRAW);
  }

  /** Draw the layers, one behind the other in `order`. share: of each layer's points. */
  draw(camera: Camera, density: number, background: Rgb, layers: Layer[], share: number): void {
    const { gl } = this;
    gl.viewport(0, 0, gl.drawingBufferWidth, gl.drawingBufferHeight);
    gl.clearColor(background[0] / 255, background[1] / 255, background[2] / 255, 1);
    gl.clear(gl.COLOR_BUFFER_BIT);
    const [fx, fy] = [(2 * camera.scale) / camera.width, (2 * camera.scale) / camera.height];
    gl.uniform4f(this.at.view, fx, fy, -camera.x * fx, -camera.y * fy);
    let from = 0;
    for (const layer of layers) {
      const count = Math.ceil(layer.count * share);
      const [r, g, b] = layer.rim;
      gl.uniform1f(this.at.size, Math.min(this.largest, layer.size * density));
      gl.uniform1f(this.at.opacity, layer.opacity);
      gl.uniform4f(this.at.rim, r / 255, g / 255, b / 255, layer.rimWidth * density);
      if (count > 0) gl.drawElements(gl.POINTS, count, gl.UNSIGNED_INT, 4 * from);
      from += layer.count;
    }
  }

  /** Wait until all is drawn: for measuring. */
  finish(): void {
    this.gl.readPixels(0, 0, 1, 1, this.gl.RGBA, this.gl.UNSIGNED_BYTE, new Uint8Array(4));
  }
}
