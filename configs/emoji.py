"""A transformer for the emoji world: "a waving hand with dark skin tone on a blue background", 64x64, 25 frames.

Its latents are those of `autoencoder_emoji.py`. Pictures come first: they teach most for their cost.

    sora-jax data emoji
    sora-jax prepare --config=configs/emoji.py --videos=data/emoji/videos/videos --out=data/emoji/latents/videos \
        --autoencoder=runs/autoencoder_emoji --config.data.validation=0.01
    sora-jax prepare --config=configs/emoji.py --videos=data/emoji/videos/pictures \
        --out=data/emoji/latents/pictures --autoencoder=runs/autoencoder_emoji --config.data.validation=0.01 \
        --tokenizer=data/emoji/latents/videos/tokenizer.model
    sora-jax prepare --config=configs/emoji.py --videos=data/emoji/videos/short \
        --out=data/emoji/latents/short --autoencoder=runs/autoencoder_emoji --config.data.validation=0.01 \
        --tokenizer=data/emoji/latents/videos/tokenizer.model
    JAX_NUM_CPU_DEVICES=1 sora-jax train --config=configs/emoji.py --workdir=runs/emoji --config.train.steps=800 \
        --config.data.path=data/emoji/latents/pictures:10,data/emoji/latents/short:2,data/emoji/latents/videos:2
    JAX_NUM_CPU_DEVICES=1 sora-jax train --config=configs/emoji.py --workdir=runs/emoji \
        --config.optimizer.schedule=wsd --config.optimizer.decay_steps=1500 \
        --config.data.path=data/emoji/latents/pictures:7,data/emoji/latents/short:2,data/emoji/latents/videos:6
    sora-jax evaluate --checkpoint=runs/emoji --suite=emoji

Devices: 1, a laptop's CPU. 20,110,848 parameters, with the autoencoder 29,369,848.
Time and result: not known yet; docs/notes/emoji_model.md says how far it is.
"""

import pathlib
import runpy

from sora_jax.config.load import default_config

autoencoder = runpy.run_path(str(pathlib.Path(__file__).with_name("autoencoder_emoji.py")))


def get_config():
    config = default_config()
    config.autoencoder.update(autoencoder["get_config"]().autoencoder)
    config.text.update(
        vocabulary=2048, width=192, heads=6, head_dim=32, mlp=384, layers=2, max_tokens=64, dtype="float32"
    )
    config.transformer.update(
        patch=(1, 1, 1),
        channels=config.autoencoder.latent_channels,
        text_width=config.text.width,
        width=384,
        heads=6,
        mlp=1280,
        layers=8,
        rotary_base=100.0,
        predicts="data",
        remat="none",
        unroll=8,
    )
    config.data.update(
        fps=8.0,
        sizes=("64x64",),
        frames=(25, 5, 1),
        batch=48,
        sequence_length=112,  # a video of 7 x 4 x 4 patches, three of 2 x 4 x 4, or seven pictures
        text_length=128,  # captions have 13 tokens on average, 26 at most
        clips_per_sequence=7,
        threads=1,
    )
    config.flow.shift_scale = 6.0
    config.masks.update(
        text=60,
        first_frame=18,
        last_frame=2,
        first_last=3,
        prefix=5,
        suffix=3,
        prefix_suffix=4,
        random_frames=2,
        inpaint=1.5,
        outpaint=1.5,
    )
    config.optimizer.update(
        name="muon",
        learning_rate=2e-3,
        muon_rms=0.6,
        warmup_steps=50,
        final_fraction=0.01,
        spike=2.0,
        ema_decay=0.995,
    )
    config.train.update(
        steps=7_000,
        save_every=100,
        sample_every=500,
        sample_prompts=(
            "a grinning face on a blue background",
            "a rocket on a yellow background",
            "clapping hands with light skin tone on a teal background",
            "a thumbs up with dark skin tone on a white background",
        ),
    )
    config.sample.update(
        size="64x64",
        frames=25,
        fps=8.0,
        steps=50,
        solver="ancestral",
        guidance=3.0,
        guidance_min=0.4,
        guidance_max=0.95,
    )
    return config
