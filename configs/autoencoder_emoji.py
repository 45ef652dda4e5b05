"""The autoencoder of the emoji world: 64x64 pixels and 25 frames become 4x4 and 7 latents of 320 channels.

    sora-jax data emoji --sets=autoencoder,held_out
    sora-jax prepare --config=configs/autoencoder_emoji.py --videos=data/emoji/videos/autoencoder \
        --out=data/emoji/pixels --config.data.validation=0.01
    sora-jax prepare --config=configs/autoencoder_emoji.py --videos=data/emoji/videos/held_out \
        --out=data/emoji/pixels_held_out --config.data.validation=1.0
    JAX_NUM_CPU_DEVICES=2 sora-jax train --config=configs/autoencoder_emoji.py \
        --config.data.path=data/emoji/pixels --workdir=runs/autoencoder_emoji
    sora-jax evaluate --checkpoint=runs/autoencoder_emoji --data=data/emoji/pixels_held_out

Devices: 2, the cores of a laptop's CPU. 9,259,000 parameters.
Time and result: not known yet; docs/notes/emoji_model.md says how far it is.
"""

from sora_jax.config.load import default_config


def get_config():
    config = default_config()
    config.objective = "autoencoder"
    config.autoencoder.update(
        patch=4,
        width=32,
        decoder_width=40,
        multipliers=(1, 2, 3),
        temporal=(True, True),
        blocks=1,
        latent_channels=320,
        dtype="float32",
    )
    config.transformer.channels = 320
    config.loss.mse = 4.0
    config.data.update(
        fps=8.0, sizes=("64x64",), frames=(25,), batch=4, crop_frames=25, crop_size="64x64", threads=1
    )
    config.optimizer.update(
        name="muon",
        learning_rate=3e-3,
        warmup_steps=50,
        schedule="cosine",
        final_fraction=0.01,
        ema_decay=0.998,
        weight_decay=0.0,
    )
    config.train.update(steps=6_000, save_every=250, log_every=20)
    return config
