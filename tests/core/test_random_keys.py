"""No two uses of randomness draw the same bits, whatever the seed and the number of the use."""

import jax

from sora_jax.core.random_keys import Purpose, purpose_key, seed_key
from sora_jax.generate.sampling.clips import Noise

SEEDS, NUMBERS = (0, 1, 2**31, 2**32, 2**64 - 1), range(6)


def test_no_two_purposes_videos_windows_or_solver_steps_share_bits():
    keys = {}
    for seed in SEEDS:
        for number in NUMBERS:
            for purpose in Purpose:
                keys[seed, purpose.name, number] = purpose_key(seed_key(seed), purpose, number)
            for window in NUMBERS:
                noise = Noise(seed, window=window)
                video = jax.random.fold_in(noise.key, number)  # as generate.steps.begin
                keys[seed, "video", number, window] = video
                for step in NUMBERS:  # as a solver that adds noise
                    keys[seed, "solver", number, window, step] = jax.random.fold_in(video, step)
    bits = jax.vmap(lambda key: jax.random.bits(key, (4,)))(jax.numpy.stack(list(keys.values())))
    assert len({row.tobytes() for row in jax.device_get(bits)}) == len(keys)


def test_the_seeds_of_earlier_versions_keep_their_keys():
    for seed in (0, 7, 2**32 - 1):
        assert (jax.random.key_data(seed_key(seed)) == jax.random.key_data(jax.random.key(seed))).all()
