/** Sound from the microphone, as a WAV file. */

import { encode } from "./wav";

export interface Recording {
  /** Ends it. null: it was too short to hold a sound. */
  stop: () => Promise<Blob | null>;
  cancel: () => void;
  level: () => number; // 0 to 1, of this moment
}

const LEAST = 0.1; // seconds

const WORDS: Record<string, string> = {
  NotAllowedError: "The browser does not let this page use the microphone. Allow it beside the address, and try again.",
  NotFoundError: "This device has no microphone.",
  NotReadableError: "Another program uses the microphone.",
};

/** Raw samples where the browser can keep them, else what it compresses to. */
function format(): MediaRecorderOptions {
  const raw = "audio/webm;codecs=pcm";
  return MediaRecorder.isTypeSupported(raw) ? { mimeType: raw } : {};
}

async function wav(parts: Blob[], context: AudioContext): Promise<Blob | null> {
  const all = new Blob(parts);
  if (!all.size) return null;
  const decoded = await context.decodeAudioData(await all.arrayBuffer());
  const samples = decoded.getChannelData(0);
  return decoded.duration < LEAST ? null : encode({ rate: decoded.sampleRate, samples });
}

/** Begin to record. Raises an error in words where that cannot be. */
export async function record(): Promise<Recording> {
  if (!navigator.mediaDevices) throw new Error("This browser gives the microphone to pages of this machine or of https only.");
  let stream: MediaStream;
  try {
    const plain = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    stream = await navigator.mediaDevices.getUserMedia({ audio: plain });
  } catch (error) {
    const name = error instanceof DOMException ? error.name : "";
    throw new Error(WORDS[name] ?? `The microphone cannot be used: ${String(error)}`);
  }
  const context = new AudioContext();
  const meter = new AnalyserNode(context, { fftSize: 1024 });
  context.createMediaStreamSource(stream).connect(meter);
  const heard = new Float32Array(meter.fftSize);
  const recorder = new MediaRecorder(stream, format());
  const parts: Blob[] = [];
  recorder.addEventListener("dataavailable", (event) => parts.push(event.data));
  recorder.start();
  const end = async () => {
    const ended = new Promise((done) => recorder.addEventListener("stop", done, { once: true }));
    if (recorder.state !== "inactive") {
      recorder.stop();
      await ended;
    }
    stream.getTracks().forEach((track) => track.stop());
  };
  return {
    stop: async () => {
      await end();
      try {
        return await wav(parts, context);
      } finally {
        await context.close();
      }
    },
    cancel: () => void end().then(() => context.close()),
    level: () => {
      meter.getFloatTimeDomainData(heard);
      return Math.min(1, 3 * Math.sqrt(heard.reduce((sum, v) => sum + v * v, 0) / heard.length));
    },
  };
}
