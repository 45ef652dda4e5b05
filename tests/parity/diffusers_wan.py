"""diffusers' and transformers' models with the weights of wan_cases, fed and read in our layout."""

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel
from wan_cases import IMAGE, TEXT, TRANSFORMERS, random_images, random_tensors, random_tokens, transformer_inputs


def build_transformer(settings):
    """Their transformer of the same sizes as ours."""
    image = {}
    if settings.image_width:
        image = {"image_dim": settings.image_width, "added_kv_proj_dim": settings.width}
    return WanTransformer3DModel(
        patch_size=settings.patch,
        num_attention_heads=settings.heads,
        attention_head_dim=settings.width // settings.heads,
        in_channels=settings.channels + settings.condition_channels,
        out_channels=settings.channels,
        text_dim=settings.text_width,
        freq_dim=settings.frequencies,
        ffn_dim=settings.mlp,
        num_layers=settings.layers,
        cross_attn_norm=True,
        pos_embed_seq_len=settings.image_positions or None,
        **image,
    ).eval()


def build_text(settings):
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=settings.vocabulary,
            d_model=settings.width,
            d_kv=settings.head_dim,
            d_ff=settings.mlp,
            num_layers=settings.layers,
            num_heads=settings.heads,
            relative_attention_num_buckets=settings.buckets,
            relative_attention_max_distance=settings.max_distance,
        )
    ).eval()


def build_image(settings):
    return CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=settings.width,
            intermediate_size=settings.mlp,
            num_hidden_layers=settings.layers + 1,
            num_attention_heads=settings.heads,
            image_size=settings.size,
            patch_size=settings.patch,
            hidden_act="gelu",
        )
    ).eval()


def shapes_of(model) -> dict[str, tuple[int, ...]]:
    """Of its tensors by name, an alias left out."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    shapes.pop("encoder.embed_tokens.weight", None)
    return shapes


def with_random_weights(model):
    tensors = random_tensors(shapes_of(model))
    left = model.load_state_dict({name: torch.from_numpy(t) for name, t in tensors.items()}, strict=False)
    assert left.missing_keys in ([], ["encoder.embed_tokens.weight"]) and not left.unexpected_keys
    return model


@torch.no_grad()
def their_velocity(case: str, model=None) -> np.ndarray:
    """Of their transformer of this case, with its random weights if none is given."""
    inputs = transformer_inputs(case)
    model = model or with_random_weights(build_transformer(TRANSFORMERS[case]))
    x = [torch.from_numpy(inputs[name]) for name in ("latents", "condition") if name in inputs]
    _, height, width = inputs["latents"].shape[1:4]
    times = 1000 * torch.from_numpy(inputs["times"])
    per_patch = times.repeat_interleave(height * width // 4, dim=1)
    image = inputs.get("image")
    if image is not None and model.config.pos_embed_seq_len:
        image = image.reshape(4, -1, image.shape[-1])  # two images for each video
    return (
        model(
            torch.cat(x, -1).movedim(-1, 1),
            times[:, 0] if case != "ti2v" else per_patch,
            torch.from_numpy(inputs["text"]),
            None if image is None else torch.from_numpy(image),
        )
        .sample.movedim(1, -1)
        .numpy()
    )


@torch.no_grad()
def their_text() -> np.ndarray:
    tokens, real = (torch.from_numpy(x) for x in random_tokens())
    model = with_random_weights(build_text(TEXT))
    return (model(tokens, attention_mask=real).last_hidden_state * real[..., None]).numpy()


@torch.no_grad()
def their_image() -> np.ndarray:
    images = torch.from_numpy(random_images()).movedim(-1, 1)
    return with_random_weights(build_image(IMAGE))(images, output_hidden_states=True).hidden_states[-2].numpy()
