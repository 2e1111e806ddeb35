"""Containers × codecs that libsndfile and PyAV write here, and their bytes for given samples."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass

import numpy as np
import soundfile

from test_media import pyav


@dataclass(frozen=True)
class Format:
    """How a recording is written. codec: soundfile's subtype, or PyAV's codec with `by_ffmpeg`.

    more: samples that the codec may add at the end, as its blocks are, or for its delay. less:
    samples that the encoder may leave out at the end.
    """

    name: str
    container: str
    codec: str
    by_ffmpeg: bool = False
    rate: int = 16000
    more: int = 0
    less: int = 0
    exact: bool = True  # lossless, but for rounding


FORMATS = [
    *(Format(f"WAV {c}", "WAV", c) for c in ("PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")),
    Format("WAV PCM_U8", "WAV", "PCM_U8", exact=False),
    Format("WAV A-law", "WAV", "ALAW", exact=False),
    Format("WAV µ-law", "WAV", "ULAW", exact=False),
    Format("WAV IMA ADPCM", "WAV", "IMA_ADPCM", more=1017, exact=False),
    Format("WAV MS ADPCM", "WAV", "MS_ADPCM", more=1017, exact=False),
    Format("WAV GSM 6.10", "WAV", "GSM610", more=640, exact=False),
    Format("WAV G.726", "wav", "g726", True, 8000, 16, exact=False),
    Format("WAV MP3", "wav", "libmp3lame", True, 44100, 3456, exact=False),
    Format("WAVEX PCM_16", "WAVEX", "PCM_16"),
    Format("RF64 PCM_16", "RF64", "PCM_16"),
    Format("W64 PCM_16", "W64", "PCM_16"),
    Format("AIFF PCM_16", "AIFF", "PCM_16"),
    Format("AIFC A-law", "AIFF", "ALAW", more=1, exact=False),
    Format("AU PCM_16", "AU", "PCM_16"),
    Format("CAF PCM_16", "CAF", "PCM_16"),
    Format("CAF ALAC", "CAF", "ALAC_16"),
    Format("NIST PCM_16", "NIST", "PCM_16"),
    Format("FLAC", "FLAC", "PCM_16"),
    Format("Ogg Vorbis", "OGG", "VORBIS", exact=False),
    Format("Ogg Opus", "OGG", "OPUS", exact=False),
    Format("Ogg FLAC", "ogg", "flac", True),
    Format("MP3", "MP3", "MPEG_LAYER_III", exact=False),
    Format("MP3 by LAME", "mp3", "libmp3lame", True, 44100, 1152, exact=False),
    Format("M4A AAC", "ipod", "aac", True, 44100, 2048, 1024, exact=False),
    Format("M4A ALAC", "ipod", "alac", True),
    Format("MOV PCM", "mov", "pcm_s16le", True),
    Format("ADTS AAC", "adts", "aac", True, 44100, 3072, exact=False),
    Format("WebM Opus", "webm", "libopus", True, 48000, 1000, exact=False),
    Format("Matroska FLAC", "matroska", "flac", True),
    Format("AC-3", "ac3", "ac3", True, 48000, 3072, exact=False),
    Format("WavPack", "wv", "wavpack", True, exact=False),
    Format("TTA", "tta", "tta", True, exact=False),
    Format("AMR-NB", "amr", "libopencore_amrnb", True, 8000, 320, exact=False),
]


def samples(n: int, rate: int = 16000, seed: int = 0) -> np.ndarray:
    """(n,) float32 on the grid of 16 bits: noise below a sweep, no two stretches alike."""
    time = np.arange(n) / rate
    sweep = 0.3 * np.sin(2 * np.pi * (200 + 90 * time) * time + seed)
    noisy = sweep + 0.05 * np.random.default_rng(seed).standard_normal(n)
    return (np.rint(noisy * 2**15) / 2**15).astype(np.float32)


def written(format: Format, values: np.ndarray) -> bytes:
    """One channel (n,) as a file.

    Raises:
        ValueError: this build of the library has no such encoder.
    """
    file = io.BytesIO()
    if format.by_ffmpeg:
        _written_by_ffmpeg(file, format, values)
    else:
        kind = {"format": format.container, "subtype": format.codec}
        soundfile.write(file, values, format.rate, **kind)
    return file.getvalue()


def _written_by_ffmpeg(file: io.BytesIO, format: Format, values: np.ndarray) -> None:
    av = pyav()
    with av.open(file, "w", format=format.container) as container:
        stream = container.add_stream(format.codec, rate=format.rate, layout="mono")
        context = stream.codec_context
        frame = av.AudioFrame.from_ndarray(values[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = format.rate, 0
        size = context.frame_size or None
        convert = av.AudioResampler(context.format, "mono", format.rate, frame_size=size)
        for piece in (*convert.resample(frame), *convert.resample(None)):
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))


def other_length(name: str, raw: bytes, length: int | None) -> bytes:
    """The file with another length of its sound in the header, in bytes; None is "not known"."""
    raw = bytearray(raw)
    if name.startswith(("WAV", "WAVEX")):
        place = raw.index(b"data") + 4
        struct.pack_into("<I", raw, place, 0xFFFFFFFF if length is None else length)
        return bytes(raw)
    if name.startswith("W64"):
        place = raw.index(b"data\xf3\xac\xd3\x11") + 16
        struct.pack_into("<q", raw, place, 0 if length is None else length + 24)
        return bytes(raw)
    if name.startswith("RF64"):
        place = raw.index(b"ds64") + 16
        struct.pack_into("<Q", raw, place, 0 if length is None else length)
        return bytes(raw)
    if name.startswith("AIF"):
        place = raw.index(b"SSND") + 4
        struct.pack_into(">I", raw, place, 0xFFFFFFFF if length is None else length + 8)
        return bytes(raw)
    if name.startswith("AU"):
        struct.pack_into(">I", raw, 8, 0xFFFFFFFF if length is None else length)
        return bytes(raw)
    if name.startswith("CAF PCM"):
        place = raw.index(b"data") + 4
        struct.pack_into(">q", raw, place, -1 if length is None else length + 4)
        return bytes(raw)
    raise ValueError(name)


LENGTHS = ("WAV", "W64", "RF64", "AIF", "AU", "CAF PCM")  # formats that `other_length` knows
