"""Text to video in the sizes of Wan 2.1 T2V-1.3B: 480p, 81 frames at 16 fps.

Transformer 1.419 B parameters, text encoder UMT5-XXL 5.68 B, autoencoder Wan 2.1 126.9 M (4x8x8, 16 channels).
`wan21-autoencoder` is a folder with its model.safetensors and settings.json, `umt5-xxl` one with the text encoder
in transformers' layout, which is not trained, and `spiece.model` its tokenizer.

    sora-jax plan --config=configs/t2v_1_3b.py --topology=v5e:8x8
    sora-jax prepare --config=configs/t2v_1_3b.py --videos=videos --autoencoder=wan21-autoencoder \
        --tokenizer=spiece.model --out=data/480p
    sora-jax train --config=configs/t2v_1_3b.py --config.data.path=data/480p --workdir=runs/t2v_1_3b
    sora-jax sample --checkpoint=runs/t2v_1_3b --prompt="a boat on a lake at dawn" --out=boat.mp4
    sora-jax evaluate --checkpoint=runs/t2v_1_3b

Devices: 64 (fsdp 16, ulysses 4; 12 heads divide by no more than 4).
Time: not measured.
Result: not trained. The step type-checks on 64 and on 4,096 devices. docs/notes/chips.md has the
memory and the estimated time of a step on several chips, by their compilers.
Source of the sizes: Wan 2025 (arXiv 2503.20314) and its published configurations.
"""

from sora_jax.config.load import default_config

# Statistics of Wan 2.1's latents by channel, published with its weights.
LATENT_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
LATENT_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip


def get_config():
    config = default_config()
    config.autoencoder.update(
        width=96,
        decoder_width=96,
        multipliers=(1, 2, 4, 4),
        blocks=2,
        temporal=(False, True, True),
        latent_channels=16,
        latent_mean=LATENT_MEAN,
        latent_std=LATENT_STD,
    )
    config.text.weights = "umt5-xxl"  # its sizes are the defaults
    config.transformer.update(
        patch=(1, 2, 2), channels=16, text_width=4096, width=1536, heads=12, mlp=8960, layers=30
    )
    # Attention is most of the work, and every chip of docs/notes/chips.md has the memory to keep its outputs.
    config.transformer.remat = "save_attention"
    config.data.update(
        fps=16.0,
        sizes=("632", "256"),  # 632 x 632 pixels are as many as 832 x 480
        frames=(81, 17, 1),
        batch=64,
        sequence_length=34_816,  # the largest clip, 21 x 30 x 52 patches at 832x480, with room for other shapes
        text_length=2048,
        clips_per_sequence=16,
    )
    config.mesh.update(fsdp=16, ulysses=4)
    config.train.update(steps=200_000, accumulate=4)
    config.sample.update(size="832x480", frames=81, fps=16.0, steps=50, guidance=6.0, shift=8.0)
    return config
