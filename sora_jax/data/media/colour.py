"""What a file says of its colours that 8 bits of RGB can't show: high dynamic range and alpha."""

from sora_jax.data.media.container import Container
from sora_jax.data.media.formats import FFMPEG
from sora_jax.data.media.video import Video

# ITU-T H.273, table 3: transfer characteristics.
_HDR = {16: "PQ", 18: "HLG"}


def hdr_transfer(video: Video) -> str:
    """ "PQ" or "HLG" if the video has such a transfer function, else ""."""
    if video.format[0] != FFMPEG:
        return ""
    with Container(video.path, video.format[1], video.options) as container:
        return _HDR.get(int(container.stream.codec_context.color_trc or 0), "")


def has_alpha(video: Video) -> bool:
    """Whether the frames of a video have an alpha channel."""
    if video.format[0] != FFMPEG:
        return False
    with Container(video.path, video.format[1], video.options) as container:
        stream = container.stream
        kept = stream.codec_context.format
        components = kept.components if kept else ()
        return stream.metadata.get("alpha_mode") == "1" or any(component.is_alpha for component in components)
