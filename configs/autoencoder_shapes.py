"""The autoencoder of the shapes world: 64x64 pixels and 17 frames become 4x4 and 5 latents of 32 channels.

    python -c "from pathlib import Path; from sora_jax.data.shapes import write_world; \
        write_world(Path('data/shapes/videos'), 4000, lengths=(17, 17, 17, 1))"
    sora-jax prepare --config=configs/autoencoder_shapes.py --videos=data/shapes/videos --out=data/shapes/pixels
    sora-jax train --config=configs/autoencoder_shapes.py --config.data.path=data/shapes/pixels \
        --workdir=runs/autoencoder_shapes
    sora-jax evaluate --checkpoint=runs/autoencoder_shapes

Devices: 1, a laptop's CPU. 4,618,192 parameters.
Result: not trained to its end yet; with the commands above, shortened, each step of the way has run.
"""

from sora_jax.settings import default_config


def get_config():
    config = default_config()
    config.objective = "autoencoder"
    config.autoencoder.update(
        patch=4,
        width=32,
        decoder_width=48,
        multipliers=(1, 2, 2),
        temporal=(True, True),
        blocks=1,
        latent_channels=32,
        dtype="float32",
    )
    config.transformer.channels = 32
    config.data.update(sizes=("64x64",), frames=(17, 1), batch=8, crop_frames=17, crop_size="64x64")
    config.optimizer.update(learning_rate=2e-3, warmup_steps=100, schedule="cosine", ema_decay=0.999)
    config.train.update(steps=3000, save_every=500)
    return config
