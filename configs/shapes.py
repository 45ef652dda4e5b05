# ruff: noqa: E501
"""A transformer for the shapes world: "a small red circle moves left on a blue background", 64x64, 17 frames.

The latents are those of `autoencoder_shapes.py`, or of the same autoencoder as it ships; its tokenizer is
`train_tokenizer` of the captions of 6,000 scenes of seed 77, as videos and as pictures, in all styles:

    python tests/benchmarks/shapes/shapes_data.py images --out=data    (it renders, and then runs, with the set's frames)
    sora-jax prepare --config=configs/shapes.py --videos=data/rendered/images --out=data/images \
        --config.data.frames=1, --autoencoder=sora_jax/worlds/shapes/weights/autoencoder \
        --tokenizer=sora_jax/worlds/shapes/weights/tokenizer.model
    sora-jax train --config=configs/shapes.py --config.data.path=data/images --workdir=runs/shapes \
        --config.train.steps=300
    python tests/benchmarks/shapes/learning_curve.py runs/shapes
    sora-jax checkpoint release --workdir=runs/shapes --out=sora_jax/worlds/shapes/weights
    sora-jax evaluate --suite=shapes

What each set holds is in that script: 17 frames of 64x64, or pictures (images, pairs), or five frames (short,
across, along); of one thing (single) or two (pairs, double), of near colours (warm), of opposite ways (across,
along), and windows of longer videos (middle).

Stages, one run (the same workdir, other flags):

    images                                                                    to update 300   (1)
    images:7,short:3,single:1.5, at first images:6,single:2                   to 737          (1) (2)
    images:5,short:3,single:2,videos:2                                        to 1,016        (3)
    images:3,pairs:3,short:3,single:1.5,videos:2,double:1                     to 1,382        (3) (4) 4150
    images:2,pairs:2,short:3,single:1.5,videos:2,double:1.3                   to 1,810        (3) (4) 4150
    images:2,pairs:2,short:2.5,single:1.5,videos:2.5,double:1.5               to 2,381        (3) (4) 3700
    images:1.5,pairs:3,short:2,single:1,videos:2.5,double:2,aspects:.7,long:.4  to 3,229      (4) (5) 3490
    pairs:5,images:1                                                          to 3,467        (6) 288
    pairs2:5,images:1                                                         to 3,939        (6) 208

Up to here the attention of the text encoder was T5's, and captions were bags of words (docs/evaluation.md). The
model was released, its relative biases, queries and keys were drawn anew as `models/text.py` draws them now, and a
second run began with it (config.train.init_from):

    pairs2:8,images:2,short:1,single:.5,double:.5                             to 562          (6) 160 (4) 1700
    pairs2:6,images:1,short:2,videos:2,double:2.5,single:.7                   to 1,000        (6) 112 (4) (9)
    the same                                                                  to 1,341        (6) 112 (4) 1800 (7)
    pairs2:3,images:.5,short:3,videos:3,double:2,single:2                     to 1,801        (6) 96 (4) 2060 (8)
    the same with single:1.5,aspects:1,long:.5                                to 1,900        (5) (4) 1900
    pairs2:3,images:.5,short:5,videos:4,double:1.5,single:3                   to 2,108        (6) 96 (8)
    the same with short:6                                                     to 2,878        (6) 96 (10)
    the same with short:4,double:4,single:1.5                                 to 3,060        (6) 96 (10)
    pairs2:2,short2:14,short:2,videos:2,double:3,single:1                     to 3,602        (6) 112 (11)
    the same with short2:12,double:2,double2:3                                to 3,801        (6) 112 (11)
    pairs2:2,images:1,short2:8,short:3,videos:4,double:1,double2:2.5,single:2.5 to 4,403      (6) 112 (12)
    the same with short2:7                                                    to 5,500        (6) 112 (12) (13)
    the same with short2:6,aspects:2,long:1                                   to 5,800        (5) (12) (13)
    pairs2:2,images:.5,short2:9,short:2,videos:2.5,double:1,double2:3.5,single:2  to 6,352    (6) 112 (14)
    the same with short2:3,short:1.5,double:0,double2:3 and short3:4,across:3,along:3,middle:1
                                                                              to 6,547        (6) 112 (14)
    pairs2:1.5,warmpairs:1.5,images:.5,short2:2.5,short3:3.5,across:2.5,along:2.5,short:1.5,videos:2.5,double2:2,
        across17:2,along17:2,single:2,middle:1                                to 7,186        (6) 112 (14)
    the same with pairs2:10,warmpairs:5,images:1,warmshort:2,double2:1.5,across17:1.5,along17:1.5,middle:.5
                                                                              to 7,803        (6) 144 (14)
    pairs2:8,warmpairs:4,images:2,short2:2.5,short3:3.5,across:2,along:2,warmshort:1.5,short:2,videos:4,double:1,
        double2:1.5,across17:1,along17:1,single:2.5,middle:.5                 to 8,900        (6) 144 (15) (16)
    the same with aspects:2,long:1                                            to 9,200        (5) (15) (16)
    pairs2:10,warmpairs:8,images:1,short2:2,short3:3.5,across:2.5,along:2.5,warmshort:3,short:1.5,videos:2.5,
        double2:1.5,across17:1.5,along17:1.5,single:2.5,middle:1              to 9,510        (6) 144 (17)
    the same with pairs2:8,pairs3:10,warmpairs2:12,warmpairs:3,images:1.5,warmshort2:3.5,warmshort:1,warm17:1.5
                                                                              to 10,502       (6) 160 (17)
    pairs2:7,pairs3:8,warmpairs2:6,warmpairs:2,images:2,short2:2,short3:3,across:2,along:2,warmshort2:2.5,
        warmshort:1,short:2,videos:4,double:1,double2:1.5,across17:1.5,along17:1.5,warm17:1.5,single:3.5,middle:1
                                                                              to 11,702       (6) 160 (18) (19)
    the same with aspects:2,long:1                                            to 12,000       (5) (18) (19)
    pairs2:8,pairs3:8,warmpairs2:8,warmpairs:2,images:6,short2:2,short3:3,across:2,along:2,warmshort2:2.5,short:2.5,
        videos:3,double:1,double2:1.5,across17:2,along17:2,warm17:1.5,single:5,middle:2
                                                                              to 13,811       (6) 160 (20)
    pairs2:6,pairs3:7,warmpairs2:5,warmpairs:1.5,images:2,images2:4,short2:1.5,short3:2.5,across:1.5,along:1.5,
        across2:2,along2:2,middle2:4,warmshort2:2,short:2.5,videos:4,double:1,double2:1.5,across17:1.5,along17:1.5,
        warm17:1.5,single:4.5,middle:2                                        to 15,002       (6) 160 (21) (22)
    the same with aspects:2,long:1                                            to 15,300       (5) (21) (22)
    pairs2:6,pairs3:7,warmpairs2:5,warmpairs:1.5,images:2,images2:3,short2:1.5,short3:2.5,across:1.5,along:1.5,
        across2:2,along2:2,warmshort2:2,short:2.5,videos:4.5,double:1,double2:2,across17:2,along17:2,warm17:1.5,
        single:5                                                              to 15,880       (6) 160 (23) (24)
    pairs2:6,pairs3:7,warmpairs2:5,warmpairs:1.5,images:3,images2:5,short2:1.5,short3:2.5,across:2,along:2,
        across2:2.5,along2:2.5,warmshort2:2,short:3.5,videos:6,double:1.5,double2:2.5,across17:2,along17:2,warm17:2,
        single:8                                                              to 18,072       (6) 160 (23) (25)
    the same with aspects:2,long:1                                            to 18,372       (5) (23) (25)

The model was released once more, and a third run began with it, on new clips of what it got wrong:

    single2:7,across3:5,along3:5,double2:3.5,warm17:2,videos:5,across2:3,along2:3,short3:3,short:3.5,pairs2:13,
        warmpairs2:6.5,images2:8                                              to 1,702        (6) 160 (26) (27)
    the same with aspects:2,long:1                                            to 2,000        (5) (26) (27)

Six more runs followed. Each began with a mean of models before it (`checkpoint release` with several --workdir;
docs/evaluation.md): the fourth with the third's model, the fifth with the mean of these two (A), the sixth with
the mean of the fifth's and A (B), the seventh with the mean of the sixth's and B, grown from six layers to eight
by `python tests/benchmarks/shapes/grow.py MODEL OUT --layers=0,1,2,2,3,3,4,5`, the eighth with the mean of the seventh's
and that, the ninth with the mean of the eighth's and what it began with. So was made, of the ninth's, what ships:

    single2:5.5,single3:4,across3:4,along3:4,double2:2.5,double3:2.5,warm17:2,warm17more:5.5,videos:5,across2:2.5,
        along2:2.5,warmshort2:3.5,short3:2.5,short:3,pairs2:11,warmpairs2:9,images2:7
                                                                              fourth to 1,800 (6) 160 (26) (28)
    single2:8,single3:8,images2:14,short:3.5,videos:6,across3:3,along3:3,double2:2.5,double3:2.5,warm17:1.5,
        warm17more:2.5,across2:2,along2:2,warmshort2:2,short3:2,pairs2:9,warmpairs2:6,aspects:2,long:1
                                                                              fifth to 500    (5) (26) (29)
    single2:6,single3:6,images2:9,short:3.5,videos:6,across3:5,along3:5,double2:3,double3:3,warm17:2.5,warm17more:3,
        across2:2,along2:2,warmshort2:3,short3:2.5,pairs2:11,warmpairs2:7     sixth to 1,024  (6) 160 (26) (30)
    the same with aspects:2,long:1                                            sixth to 1,300  (5) (26) (30)
    single2:7,single3:7,images2:10,short:3.5,videos:6,across3:5,along3:5,double2:3,double3:3,warm17:2.5,warm17more:3,
        across2:2,along2:2,warmshort2:3,short3:2.5,pairs2:11,warmpairs2:7     seventh to 669  (6) 160 (31) (32)
    the same with aspects:2,long:1                                            seventh to 900  (5) (31) (33)
    as seventh to 669                                                         eighth to 700   (6) 160 (31) (34)
    the same with across3:8,along3:8,across2:3,along2:3,pairs2:9              ninth to 620    (6) 160 (31) (35)

    (1) config.data.text_length=200, in the two stages after them 128
    (2) config.masks: text=45 first_frame=30 last_frame=5 first_last=3 prefix=6 suffix=3 prefix_suffix=1 random_frames=3 inpaint=2 outpaint=2
    (3) the same with text=55 first_frame=22 prefix=5 random_frames=2: ways are learned from a frame that is given
    (4) config.optimizer.schedule=cosine, final_fraction=0.01, config.train.steps as behind it
    (5) in config.data batch=16, sequence_length=288, clips_per_sequence=18, text_length=160, in the second run 192, at 5,800 224
        and then 256; config.transformer.attention=xla
    (6) config.data.text_length as behind it
    (7) config.masks: text=55 first_frame=14 last_frame=2 first_last=2 prefix=5 suffix=4 prefix_suffix=3 random_frames=2 inpaint=1 outpaint=1
    (8) the same with first_frame=20
    (9) 1700 as before to 741, 1500 to 814, then 1800
    (10) text=50 first_frame=20 last_frame=5 first_last=2 prefix=4 suffix=9 prefix_suffix=5 random_frames=2 inpaint=1 outpaint=1
    (11) the same with text=42 first_frame=30 suffix=8
    (12) the same with text=52 first_frame=18 prefix=5 suffix=9 prefix_suffix=6 random_frames=3 inpaint=1.5 outpaint=1.5
    (13) (4) 5800 with learning_rate=0.0156 and final_fraction=0.0005, which is 2e-3 at 4,403 and falls from there
    (14) text=48 first_frame=24 last_frame=4 first_last=2 prefix=4 suffix=9 prefix_suffix=6 random_frames=2 inpaint=.5 outpaint=.5
    (15) the same with text=54 first_frame=18 last_frame=5 prefix=5 suffix=7 prefix_suffix=5 random_frames=3 inpaint=1.5 outpaint=1.5
    (16) (4) 9200 with learning_rate=0.0356 and final_fraction=0.0005, which is 2e-3 at 7,803
    (17) text=44 first_frame=20 last_frame=4 first_last=2 prefix=4 suffix=14 prefix_suffix=9 random_frames=2 inpaint=.5 outpaint=.5
    (18) text=48 first_frame=16 last_frame=5 first_last=2 prefix=5 suffix=12 prefix_suffix=7 random_frames=3 inpaint=1 outpaint=1
    (19) (4) 12000 with learning_rate=0.05255 and final_fraction=0.0005, which is 2e-3 at 10,500
    (20) text=40 first_frame=15 last_frame=3 first_last=2 prefix=4 suffix=26 prefix_suffix=8 random_frames=1 inpaint=.5 outpaint=.5
    (21) text=44 first_frame=14 last_frame=4 first_last=2 prefix=5 suffix=20 prefix_suffix=7 random_frames=2 inpaint=1 outpaint=1
    (22) (4) 15300 with learning_rate=0.08625 and final_fraction=0.0005, which is 2e-3 at 13,811
    (23) text=50 first_frame=15 last_frame=4 first_last=2 prefix=4 suffix=15 prefix_suffix=6 random_frames=2 inpaint=1 outpaint=1
    (24) (4) 15880 with learning_rate=0.24332 and final_fraction=0.0005, which is 8e-4 at 15,300
    (25) from 16,872 on (4) 18372 with learning_rate=0.12227 and final_fraction=0.0005, which is 2e-3 at 16,872
    (26) text=54 first_frame=14 last_frame=4 first_last=2 prefix=4 suffix=13 prefix_suffix=5 random_frames=2 inpaint=1 outpaint=1
    (27) (4) 2000 with final_fraction=0.0005; `--count` of videos 4000, across2 and along2 3500, short3 5000,
        pairs2 14000, warmpairs2 and images2 8000, aspects 1000, long 500
    (28) the same with 1800, and `--count` of warmshort2 6000; so are the sets of all runs after it
    (29) the same with 500, learning_rate=1e-3 and, in (5), text_length=256
    (30) the same with 1300, learning_rate=1.5e-3 and, in (5), text_length=256
    (31) text=75 first_frame=8 last_frame=2 first_last=1 prefix=3 suffix=6 prefix_suffix=3 random_frames=1 inpaint=.5 outpaint=.5
    (32) (26) to 108; (4) 960 with final_fraction=0.0005
    (33) the same with 900 and, in (5), text_length=256
    (34) (4) 700 with final_fraction=0.0005; config.flow.ghosts=0.5, drawn for each row by a trial of that option
    (35) the same with 620 and echoes=0.35

Devices: 1, a laptop's CPU. 9,656,704 parameters; up to the sixth run layers=6 and unroll=6, 7,546,752.
Result: two cores of an AMD EPYC, 2 h 41 min and 10 h 25 min, at times beside the making of the data and samples,
and of an Intel Xeon, 1 h 23 min, for three runs; of an Intel Xeon, 1 h 15, 22, 57, 53, 40 and 35 min for the six
others: docs/evaluation.md, "The checkpoint that ships". From update 1,382 of the first run on with another
allocator (docs/performance.md).
"""

import pathlib
import runpy

from sora_jax.config.load import default_config

autoencoder = runpy.run_path(str(pathlib.Path(__file__).with_name("autoencoder_shapes.py")))


def get_config():
    config = default_config()
    config.autoencoder.update(autoencoder["get_config"]().autoencoder)
    config.text.update(
        vocabulary=1024, width=128, heads=4, head_dim=32, mlp=256, layers=2, max_tokens=64, dtype="float32"
    )
    config.transformer.update(
        patch=(1, 2, 2),  # three times as many videos a second as with (1, 1, 1): it learns far sooner
        channels=config.autoencoder.latent_channels,
        text_width=config.text.width,
        width=256,
        heads=4,
        mlp=1024,
        layers=8,
        rotary_base=100.0,
        predicts="data",
        remat="none",
        unroll=8,
    )
    config.data.update(
        sizes=("64x64",),
        frames=(17, 5, 1),
        batch=32,
        sequence_length=144,  # a video of 9 x 4 x 4 patches, three of 3 x 4 x 4, or nine pictures
        text_length=80,  # 200 for pictures alone
        clips_per_sequence=9,
        threads=1,
    )
    # Latents of 64 channels show through much noise: where things are is decided between t = 0.7 and 0.95.
    config.flow.shift_scale = 7.0
    # Most clips are made from text alone; the others learn every task of docs/tasks.md.
    config.masks.update(
        text=40,
        first_frame=2,
        last_frame=1,
        first_last=1,
        prefix=2,
        suffix=1,
        prefix_suffix=1,
        random_frames=1,
        inpaint=0.5,
        outpaint=0.5,
    )
    # AdamW's part has spikes at 3e-3; the matrices learn faster than with it at three times AdamW's pace.
    config.optimizer.update(
        name="muon", learning_rate=2e-3, muon_rms=0.6, warmup_steps=50, spike=2.0, ema_decay=0.99
    )
    config.train.update(save_every=100)
    # Guided from the very beginning it makes three things of two; to the very end, squares with bent sides.
    config.sample.update(
        size="64x64",
        frames=17,
        steps=50,
        solver="ancestral",
        guidance=3.0,
        guidance_min=0.4,
        guidance_max=0.95,
    )
    return config
