"""An autoencoder for your own videos: 16x16 pixels and 4 frames become one latent of 48 channels.

    sora-jax prepare --config=configs/autoencoder_clips.py --videos=clips --out=data/pixels
    sora-jax train --config=configs/autoencoder_clips.py --config.data.path=data/pixels --workdir=runs/autoencoder
    sora-jax evaluate --checkpoint=runs/autoencoder

For larger videos set `'--config.data.sizes=("256",)' --config.data.crop_size=128x128` and a wider model,
`--config.autoencoder.width=96 --config.autoencoder.decoder_width=128`. Changes of `config.autoencoder` are needed
in `clips.py` too.

Devices: 1, a laptop's CPU. 8,697,248 parameters.
Time: not measured; the commands above were run for a few updates only.
Result: not trained to the end.
"""

from sora_jax.config.load import default_config


def get_config():
    config = default_config()
    config.objective = "autoencoder"
    config.autoencoder.update(
        patch=4,
        width=48,
        decoder_width=64,
        multipliers=(1, 2, 2),
        temporal=(True, True),
        blocks=1,
        latent_channels=48,
        dtype="float32",
    )
    config.transformer.channels = 48
    config.data.update(sizes=("128",), frames=(17,), batch=8, crop_frames=17, crop_size="64x64")
    config.optimizer.update(learning_rate=1e-3, warmup_steps=200, schedule="cosine", ema_decay=0.999)
    config.train.update(steps=20_000)
    return config
