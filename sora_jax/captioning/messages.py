"""Messages to a chat model, to caption a video by its frames or to expand a prompt, and the reading of answers."""

import base64
import io
import json
import pathlib

import numpy as np
import PIL.Image

from sora_jax.data.media.video import probe, read_frames

CAPTIONS = ("short_caption", "caption", "long_caption")
MAX_CHARACTERS = 4000  # of a caption

DESCRIBE = """\
You see {count} frame(s) of one video, in their order, at even distances over its {seconds:.1f} seconds.
Describe the video for the training of a text-to-video model, by what is seen and nothing else: subjects and how
they look, what they do and how they move, the scene, light and colours, the style of the pictures, and the
movement of the camera. No guesses at names, sounds or what is outside; no "the video shows", no "frame".
Answer with a JSON object and nothing around it:
{{"short_caption": "at most 10 words", "caption": "one sentence of 15 to 30 words",
"long_caption": "3 to 6 sentences, 60 to 120 words, what happens in its order"}}"""

EXPAND = """\
You write prompts for a text-to-video model that was trained on long, literal descriptions.
Write out the prompt that you are given as one paragraph of 60 to 120 words in English. Keep everything that it
asks for, and its meaning; add what it leaves open: how subjects look, how they move, the scene, light, colours,
style, and the movement of the camera. Present tense, no commands, headings or comments: the paragraph alone."""


def caption_messages(path: pathlib.Path, *, frames: int, side: int) -> list[dict]:
    """Messages that ask for captions of a video or picture.

    Args:
      frames: maximum number of frames to send, at even distances.
      side: maximum of their longer side, in pixels.
    Raises: InputError if the file can't be read.
    """
    video = probe(path)
    count = min(frames, video.frames)
    scale = min(1.0, side / max(video.width, video.height))
    size = max(1, round(video.height * scale)), max(1, round(video.width * scale))
    # At this rate the frame after the last one sent would be at the end.
    fps = count / video.duration if video.duration else 1.0
    pictures = [made for (made,) in read_frames(video, [size], fps=fps, frames=count)]
    text = DESCRIBE.format(count=count, seconds=video.duration)
    parts = [{"type": "image_url", "image_url": {"url": data_url(picture)}} for picture in pictures]
    return [{"role": "user", "content": [{"type": "text", "text": text}, *parts]}]


def data_url(picture: np.ndarray) -> str:
    """A picture, [H, W, 3] uint8, as a JPEG in a data URL."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(picture).save(buffer, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def read_captions(text: str) -> dict[str, str]:
    """The captions in an answer to `caption_messages`. Raises: ValueError if one is missing."""
    first, last = text.find("{"), text.rfind("}")  # models often put code fences around it
    if not 0 <= first < last:
        raise ValueError(f"no JSON object but {text.strip()[:60]!r}")
    found = json.loads(text[first : last + 1])
    return {name: _sentence(found.get(name), name) for name in CAPTIONS}


def expansion_messages(prompt: str) -> list[dict]:
    """Messages that ask to expand a prompt."""
    return [{"role": "system", "content": EXPAND}, {"role": "user", "content": prompt}]


def read_expansion(text: str) -> str:
    """The prompt in an answer to `expansion_messages`, in one line. Raises: ValueError if it is not usable."""
    return _sentence(text.strip().strip('"'), "prompt")


def _sentence(text, name):
    words = " ".join(text.split()) if isinstance(text, str) else ""
    if not words or len(words) > MAX_CHARACTERS:
        raise ValueError(f"{name}: {len(words):,} characters, but 1 to {MAX_CHARACTERS:,} are needed")
    return words
