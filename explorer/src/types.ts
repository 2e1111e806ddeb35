/** What the server and the page say to each other. */

export type Modality = "audio" | "image" | "video" | "text";
export type Mark = "yes" | "no" | "unsure" | "none";

/** A way to colour points. id: what `/api/values?by=` takes. */
export interface Column {
  id: string;
  title: string;
  kind: "category" | "number" | "date";
}

export interface ClassInfo {
  name: string;
  yes: number;
  no: number;
  unsure: number;
}

export interface Cluster {
  number: number;
  name: string;
  size: number;
}

export interface Clustering {
  name: string;
  clusters: Cluster[];
}

/** A process that adds to the collection. rate: rows a second; total, left (seconds): where known. */
export interface Running {
  command: string;
  rows: number;
  rate: number | null;
  total: number | null;
  left: number | null;
}

export interface State {
  version: number;
  session: string;
  name: string;
  rows: number;
  drawn: number;
  sampled: boolean;
  modality: Modality;
  model: { name: string; dim: number; tap: string; pooling: string; labels: string[] };
  // nearby: drawn points that are not of the map itself and lie where their nearest rows do
  map: { method: string; making: boolean; nearby: number };
  space: string;
  columns: Column[];
  classes: ClassInfo[];
  clusterings: Clustering[];
  selections: { name: string; rows: number }[];
  user: string;
  read_only: boolean;
  running: Running | null;
}

/** counts: of drawn points. code: the value of its points in `/api/values`. */
export interface Legend {
  by: string;
  title: string;
  kind: "category" | "number" | "date";
  entries: { code: number; name: string; count: number }[];
  none: number;
  low: number | null;
  high: number | null;
}

export interface RowShort {
  row: number;
  id: string;
  region: string;
  start: number | null;
  end: number | null;
  label: string | null;
  score: number | null;
  text: string | null;
}

export interface Media {
  kind: Modality;
  url: string | null; // of the region: sound, picture, or first frame
  start: number | null; // seconds in the recording
  end: number | null;
  seconds: number | null; // of the whole recording
  rate: number | null; // Hz, of the source
  width: number | null;
  height: number | null;
  box: [number, number, number, number] | null; // left, top, right, bottom in pixels
  frames: string[]; // of a video
  text: string | null;
  error: string | null;
}

/** origin: where the numbers come from, in words (model, engine, precision, run, when). */
export interface Row extends RowShort {
  kind: string;
  channel: number | null;
  truncated: number | null;
  scores: { name: string; score: number }[];
  classes: { name: string; probability: number | null }[];
  marks: Record<string, Record<string, Mark>>; // class → who → mark
  metadata: Record<string, string | number | boolean | null>;
  origin: { title: string; value: string }[];
  media: Media;
}

export interface Hit {
  row: number;
  similarity: number;
}

/** Of the class in hand. average_precision: on held-out examples, with its 95 % interval; null
 * where there are too few. expected: rows of the class among all, by calibrated probabilities. */
export interface Taught {
  version: number;
  name: string | null;
  words: string;
  warning: string | null; // marks were kept, and something else was not
  classes: ClassInfo[];
  held_out: {
    average_precision: number | null;
    low: number | null;
    high: number | null;
    examples: number;
    words: string;
  } | null;
  expected: number | null;
  can_undo: boolean;
  can_redo: boolean;
}

export interface Suggestion {
  row: number;
  score: number;
  probability: number | null;
  reason: "likely" | "uncertain" | "different";
}
