"""Text to video in the sizes of Wan 2.2 TI2V-5B: 704p, 121 frames at 24 fps.

Transformer 5.000 B parameters, text encoder UMT5-XXL 5.68 B, autoencoder Wan 2.2 704.7 M (4x16x16, 48 channels).
`wan22-autoencoder` is a folder with its model.safetensors and settings.json, `umt5-xxl` one with the text encoder
in transformers' layout, which is not trained, and `spiece.model` its tokenizer.

    sora-jax plan --config=configs/t2v_5b.py --topology=v6e:16x16
    sora-jax prepare --config=configs/t2v_5b.py --videos=videos --autoencoder=wan22-autoencoder \
        --tokenizer=spiece.model --out=data/704p
    sora-jax train --config=configs/t2v_5b.py --config.data.path=data/704p --workdir=runs/t2v_5b
    sora-jax sample --checkpoint=runs/t2v_5b --prompt="a boat on a lake at dawn" --out=boat.mp4
    sora-jax evaluate --checkpoint=runs/t2v_5b

With `--config=configs/t2v_5b.py:minute` a packed sequence is a minute of video, 1,441 frames or 317,680 patches,
and a step has 64 of them, for 512 devices.

Devices: 256 (fsdp 32, ulysses 8).
Time: not measured.
Result: not trained. The step type-checks on 256 and on 4,096 devices. docs/notes/chips.md has the
memory and the estimated time of a step on several chips, by their compilers.
Source of the sizes: Wan 2025 (arXiv 2503.20314) and the published configurations of Wan 2.2.
"""

from sora_jax.config.load import default_config

# Statistics of Wan 2.2's latents by channel, published with its weights.
LATENT_MEAN = (
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
    0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
    -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
)  # fmt: skip
LATENT_STD = (
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
    0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
    0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
)  # fmt: skip


def get_config(length="5s"):
    config = default_config()
    config.autoencoder.update(
        patch=2,
        width=160,
        decoder_width=256,
        multipliers=(1, 2, 4, 4),
        blocks=2,
        temporal=(False, True, True),
        shortcuts=True,
        latent_channels=48,
        latent_mean=LATENT_MEAN,
        latent_std=LATENT_STD,
    )
    config.text.weights = "umt5-xxl"  # its sizes are the defaults
    config.transformer.update(
        patch=(1, 2, 2), channels=48, text_width=4096, width=3072, heads=24, mlp=14_336, layers=30
    )
    config.data.update(
        fps=24.0,
        sizes=("949", "480"),  # 949 x 949 pixels are as many as 1280 x 704
        frames=(121, 17, 1),
        batch=128,
        sequence_length=28_672,  # the largest clip, 31 x 22 x 40 patches at 1280x704, with room for other shapes
        text_length=2048,
        clips_per_sequence=16,
    )
    config.mesh.update(fsdp=32, ulysses=8)
    config.train.update(steps=200_000, accumulate=4)
    config.sample.update(size="1280x704", frames=121, fps=24.0, steps=50, guidance=5.0, shift=5.0)
    if length == "minute":
        config.data.update(
            sizes=("1280x704",),
            frames=(1441, 121, 17, 1),
            batch=64,
            sequence_length=317_952,  # the largest clip, 361 x 22 x 40 patches, padded to the kernel's blocks
            clips_per_sequence=32,
        )
        config.mesh.update(fsdp=64, ulysses=8)
        config.transformer.remat = "save_attention"  # nine tenths of the work
        config.train.update(accumulate=1)
        config.sample.update(frames=1441)
    elif length != "5s":
        raise ValueError(f"{length}: 5s or minute")
    return config
