"""Encode clips and captions with frozen models, for `prepare` to write: the only place where data meets models."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable

import jax
import ml_dtypes
import numpy as np

from sora_jax.checkpoint.model_folder import autoencoder_folder, load_model, model_hash
from sora_jax.config.schema import AutoencoderSettings, MeshSettings, Settings, TextSettings
from sora_jax.core.mesh import make_mesh
from sora_jax.core.storage import weights_digest
from sora_jax.data.conditioning_frames import clip_preprocess, conditioning_frame_indices, grey_except
from sora_jax.data.tokenizer import Tokenizer
from sora_jax.interop.encoders import load_encoder
from sora_jax.models.autoencoder.model import Autoencoder
from sora_jax.models.autoencoder.streaming import encode_stream
from sora_jax.models.image_encoder import see
from sora_jax.models.text_encoder import embed


class ClipEncoder:
    """Encodes clips on one device: by an autoencoder, and for image-to-video by an image encoder too.

    Args:
      folder: the autoencoder, or the workdir of the run that trained it.
      settings: transformer.condition_channels and image_width say what is made besides latents.
    Raises: InputError if there is no such autoencoder or image encoder.
    """

    CHUNK = 4  # latent frames encoded at a time

    def __init__(self, folder: pathlib.Path, settings: Settings):
        self.folder = autoencoder_folder(folder)
        self._transformer, self._image = settings.transformer, settings.image
        self._mesh = make_mesh(MeshSettings(), jax.local_devices()[:1])
        with jax.set_mesh(self._mesh):
            self.settings, self._params = load_model(self.folder, Autoencoder, AutoencoderSettings)
            if self._transformer.image_width:
                self._image_params = load_encoder(self._image)
        self.digest = model_hash(self.folder)
        self.image_digest = weights_digest(self._image.weights)

    @property
    def arrays(self) -> dict[str, tuple[int | None, ...]]:
        """Shapes of the arrays that a call returns, by name; None where clips differ."""
        shapes: dict[str, tuple[int | None, ...]] = {"latents": (None, None, None, self.settings.latent_channels)}
        if self._transformer.condition_channels:
            shapes["given"] = shapes["latents"]
        if self._transformer.image_width:
            shapes["image"] = (None, self._image.width)
        return shapes

    def __call__(self, frames: np.ndarray) -> dict[str, np.ndarray]:
        """Encode a clip.

        Args:
          frames: uint8 [F, H, W, 3].
        Returns: bfloat16 arrays by name. latents: normalised, [f, h, w, C]. For image-to-video also given: latents
          of the conditioning frames alone, [f, h, w, C]; and image: the image encoder's features of them, [I, E].
        """
        F = len(frames)
        at = conditioning_frame_indices(self._transformer, F)
        videos: dict[str, Iterable[np.ndarray]] = {"latents": frames}
        made = {}
        if self._transformer.condition_channels:
            videos["given"] = grey_except({i: frames[i] for i in at}, F)
        with jax.set_mesh(self._mesh):
            for name, video in videos.items():
                pieces = encode_stream(self._params, self.settings, video, chunk=self.CHUNK)
                made[name] = np.concatenate(list(pieces))
            if self._transformer.image_width:
                images = clip_preprocess([frames[i] for i in at], self._image.size, self._image.resize)
                made["image"] = see(self._image_params, self._image, images)
        return {name: array.astype(ml_dtypes.bfloat16) for name, array in made.items()}


class CaptionEncoder:
    """Embeds captions on one device, each caption once.

    Args:
      folder: of a transformers UMT5.
      settings: its sizes, and the number of tokens at which a caption is cut.
    Raises: InputError if there is no such encoder.
    """

    def __init__(self, folder: pathlib.Path, settings: TextSettings):
        self.settings = dataclasses.replace(settings, weights=str(folder))
        self._mesh = make_mesh(MeshSettings(), jax.local_devices()[:1])
        with jax.set_mesh(self._mesh):
            self._params = load_encoder(self.settings)
        self.digest = weights_digest(folder)
        # The clips of a video share its captions.
        self._embed = functools.lru_cache(maxsize=256)(self._embedded)

    @property
    def arrays(self) -> dict[str, tuple[int | None, ...]]:
        """Shape of the array that a call returns, by name."""
        return {"text": (None, self.settings.width)}

    def __call__(self, captions: tuple[str, ...], words: Tokenizer) -> dict[str, np.ndarray]:
        """Embeddings of the empty caption, then of each of the captions, without padding: [tokens, E] bfloat16."""
        return {"text": np.concatenate([self._embed(text, words) for text in ("", *captions)])}

    def _embedded(self, text, words):
        tokens = words.encode(text, self.settings.max_tokens)
        # Few lengths, so that few programs are compiled.
        length = min(self.settings.max_tokens, max(16, 1 << (len(tokens) - 1).bit_length()))
        row = np.zeros((1, length), np.int32)
        row[0, : len(tokens)] = tokens
        segment_ids = np.int32(np.arange(length) < len(tokens))[None]
        with jax.set_mesh(self._mesh):
            made = embed(self.settings, self._params, row, segment_ids)
        return np.asarray(made)[0, : len(tokens)].astype(ml_dtypes.bfloat16)


@dataclasses.dataclass(frozen=True)
class Encoders:
    """The encoders that `prepare` applies.

    video: None if records hold pixels.
    text: None if records hold no embeddings.
    """

    video: ClipEncoder | None
    text: CaptionEncoder | None

    @property
    def arrays(self) -> dict[str, tuple[int | None, ...]]:
        """Shapes of a record's arrays by name; None where clips differ."""
        video = self.video.arrays if self.video else {"pixels": (None, None, None, 3)}
        return video | (self.text.arrays if self.text else {})
