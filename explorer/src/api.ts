/** Requests to the server. */

import { signal } from "@preact/signals";
import { app } from "./app";

/** Counts what this page has changed on the server, so that it is read again at once. */
export const changes = signal(0);

const READS = ["/api/search", "/api/export"]; // sent by POST, and change nothing

export class RequestFailed extends Error {
  constructor(
    message: string,
    readonly status: number,
  ) {
    super(message);
  }
}

async function answered(path: string, init?: RequestInit): Promise<Response> {
  let answer: Response;
  try {
    answer = await fetch(path, { credentials: "same-origin", ...init });
  } catch {
    throw new RequestFailed("The server does not answer. Is `penult explore` still running?", 0);
  }
  if (!answer.ok) {
    const document = await answer.json().catch(() => null);
    throw new RequestFailed(document?.error?.message ?? answer.statusText, answer.status);
  }
  return answer;
}

export async function get<T>(path: string, query: Record<string, string | number> = {}, init?: RequestInit): Promise<T> {
  const words = new URLSearchParams(Object.entries(query).map(([k, v]) => [k, String(v)]));
  return (await answered(words.size ? `${path}?${words}` : path, init)).json();
}

export async function bytes(path: string): Promise<ArrayBuffer> {
  return (await answered(path)).arrayBuffer();
}

export async function post<T>(path: string, body: unknown): Promise<T> {
  const headers = { "content-type": "application/json" };
  const answer = await (await answered(path, { method: "POST", headers, body: JSON.stringify(body) })).json();
  if (!READS.includes(path)) changes.value++;
  return answer;
}

export async function upload<T>(path: string, form: FormData): Promise<T> {
  return (await answered(path, { method: "POST", body: form })).json();
}

export async function download(path: string, body: unknown, name: string): Promise<void> {
  const headers = { "content-type": "application/json" };
  const answer = await answered(path, { method: "POST", headers, body: JSON.stringify(body) });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await answer.blob());
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** Do something, and show what went wrong. */
export async function attempt<T>(work: () => Promise<T>): Promise<T | null> {
  try {
    return await work();
  } catch (error) {
    app.message.value = { kind: "error", words: error instanceof Error ? error.message : String(error) };
    return null;
  }
}
