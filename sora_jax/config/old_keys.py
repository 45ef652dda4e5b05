"""Keys of settings.json files that earlier versions wrote, and their names today."""

RENAMED = {
    "mesh": {"context": "ulysses"},
    "data": {"row_patches": "sequence_length", "row_tokens": "text_length", "row_clips": "clips_per_sequence"},
    "masks": {
        "nothing": "text",
        "first": "first_frame",
        "last": "last_frame",
        "both": "first_last",
        "ends": "prefix_suffix",
        "random": "random_frames",
        "outside": "inpaint",
        "inside": "outpaint",
        "row_levels": "times_per_sequence",
    },
    "flow": {"echoes": "ghosts", "whole_times": "time_quantization"},
    "sample": {"skip": "step_cache_threshold"},
}


def with_new_keys(values: dict) -> dict:
    """The content of a settings.json of any version under today's keys."""
    return {
        group: {RENAMED.get(group, {}).get(key, key): value for key, value in keys.items()}
        if isinstance(keys, dict)
        else keys
        for group, keys in values.items()
    }
