"""CLIP (Radford et al. 2021) as open_clip builds it, and GaLR upon it.

    similarity = cosine(image tower(image), text tower(caption))

CLIP may be scored as it comes, and fine-tuned (`optim.loss: infonce`). Images come normalised by ImageNet's mean and
deviation; token ids are those of CLIP's tokenizer plus one (0 = padding).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from layers.backbone import Backbone, Renormalise
from layers.galr import GaLR
from layers.local_branch import LocalBranch
from layers.midf import make_fusion
from layers.model import Model, l2norm, register

if TYPE_CHECKING:
    from option.options import CLIPOptions, GaLROptions


@register("CLIP")
class CLIP(Model):
    """Images and captions -> vectors of one space, compared by the cosine. Local features are not read."""

    def __init__(self, options: CLIPOptions, image_size: int, words: int) -> None:
        super().__init__()
        self.clip = CLIPNetwork(options.clip.arch, options.clip.weights, image_size)

    def encode_image(self, images: Tensor, local_rep: Tensor | None = None, local_adj: Tensor | None = None) -> Tensor:
        return self.clip(images)

    def encode_text(self, token_ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.clip.encode_text(token_ids)


@register("GaLR on CLIP")
class GaLROnCLIP(GaLR):
    """GaLR upon CLIP (ours; `model.trunk: clip`): add what the image's regions tell to what CLIP sees.

        v_g = l2norm(CLIP's image vector)        v_l = local branch(X, A)        v = v_g + s MIDF(v_g, v_l)

    The scale s starts at 0, so that an untrained model scores as CLIP does.
    Raises ValueError if `embed.embed_dim` is not the width of CLIP's vectors.
    """

    def __init__(self, options: GaLROptions, image_size: int, words: int) -> None:
        Model.__init__(self)
        self.clip = CLIPNetwork(options.clip.arch, options.clip.weights, image_size)
        if self.clip.width != options.embed.embed_dim:
            raise ValueError(
                f"model.embed.embed_dim is {options.embed.embed_dim}; the vectors of {options.clip.arch} "
                f"have {self.clip.width} numbers"
            )
        self.local_branch = LocalBranch(self.clip.width)
        self.midf = make_fusion(options.fusion, self.clip.width)
        self.scale = nn.Parameter(torch.zeros(()))

    def encode_image(self, images: Tensor, local_rep: Tensor, local_adj: Tensor) -> Tensor:
        v_g = l2norm(self.clip(images))
        with torch.autocast(images.device.type, enabled=False):
            return v_g + self.scale * self.midf(v_g, self.local_branch(local_rep, local_adj))

    def encode_text(self, token_ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.clip.encode_text(token_ids)


class CLIPNetwork(Backbone):
    """One of open_clip's architectures by its name (or `local-dir:FOLDER`), with random weights.

    width: of its vectors. weights: images are normalised as these weights were trained, if open_clip knows the name.
    Raises ValueError for an architecture that open_clip lacks, that does
    not take this image size, or that is not the one which the named weights were trained with.
    """

    def __init__(self, arch: str, weights: str, image_size: int) -> None:
        super().__init__()
        import open_clip

        config = _config(arch)
        named = open_clip.pretrained.get_pretrained_cfg(arch.replace("/", "-"), weights) or {}
        if named and named.get("quick_gelu", False) != config.get("quick_gelu", False):
            other = arch.removesuffix("-quickgelu") if config.get("quick_gelu") else f"{arch}-quickgelu"
            raise ValueError(f"the weights {weights} were trained as {other}: set model.clip.arch to it")
        try:
            self.net = open_clip.create_model(
                arch, load_weights=False, pretrained_text=False, force_image_size=image_size
            )
        except Exception as error:  # of an image size, a folder, the hub
            raise ValueError(f"model.clip.arch {arch} at image size {image_size}: {error}") from None
        self.width = self.net.visual.output_dim
        self.quick_gelu = any(isinstance(module, open_clip.transformer.QuickGELU) for module in self.net.modules())
        usual = open_clip.get_model_preprocess_cfg(self.net)
        self.renormalise = Renormalise(named.get("mean") or usual["mean"], named.get("std") or usual["std"])
        # a causal tower that reads its answer at the end-of-text token never looks behind it
        self.ends_early = type(self.net) is open_clip.CLIP and self.net.text_pool_type == "argmax"

    def forward(self, images: Tensor) -> Tensor:
        """Encode images (B, 3, S, S) -> (B, D), not normalised."""
        return self.net.encode_image(self.renormalise(images)).float()

    def encode_text(self, token_ids: Tensor) -> Tensor:
        """Encode token_ids (B, T), 0 = padding after the last token -> (B, D), not normalised."""
        ids, net = (token_ids - 1).clamp(min=0), self.net
        if not self.ends_early:
            return net.encode_text(functional.pad(ids, (0, max(net.context_length - ids.shape[1], 0)))).float()
        length = ids.shape[1]
        x = net.token_embedding(ids) + net.positional_embedding[:length]
        x = net.ln_final(net.transformer(x, attn_mask=net.attn_mask[:length, :length]))
        ends = x[torch.arange(len(ids), device=ids.device), ids.argmax(dim=1)]  # the end-of-text token is the largest
        return (ends @ net.text_projection).float()


def _config(arch: str) -> dict:
    """Return open_clip's configuration of an architecture; empty for one that is described elsewhere."""
    import open_clip

    if ":" in arch:  # local-dir:, hf-hub:
        return {}
    config = open_clip.get_model_config(arch.replace("/", "-"))
    if config is None:
        near = ", ".join(name for name in open_clip.list_models() if arch.lower() in name.lower())
        raise ValueError(f"model.clip.arch {arch} is no architecture of open_clip" + (near and f" ({near})"))
    return config


# ---------------------------------------------------------------- Hugging Face's names

# in their order: the beginning or a part of a name of Hugging Face's CLIPModel -> of open_clip's CLIP
HUGGING_FACE = {
    "text_model.embeddings.token_embedding.": "token_embedding.",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.encoder.layers.": "transformer.resblocks.",
    "text_model.final_layer_norm.": "ln_final.",
    "text_projection.weight": "text_projection",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.": "visual.conv1.",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.encoder.layers.": "visual.transformer.resblocks.",
    "vision_model.pre_layrnorm.": "visual.ln_pre.",  # spelt so
    "vision_model.post_layernorm.": "visual.ln_post.",
    "visual_projection.weight": "visual.proj",
    ".self_attn.": ".attn.",
    ".layer_norm": ".ln_",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
}
PATCHES = "vision_model.embeddings.patch_embedding.weight"


def is_hugging_face(state: dict[str, Tensor]) -> bool:
    """Return whether weights carry the names of Hugging Face's CLIPModel, perhaps behind a prefix."""
    return any(name.endswith(PATCHES) for name in state)


def from_hugging_face(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of Hugging Face's CLIPModel to those of open_clip's CLIP."""
    prefix = next(name for name in state if name.endswith(PATCHES)).removesuffix(PATCHES)
    ours: dict[str, Tensor] = {}
    for name, value in state.items():
        name = name.removeprefix(prefix)
        for theirs, own in HUGGING_FACE.items():
            name = name.replace(theirs, own)
        if not name.endswith("position_ids"):
            ours[name] = value.T if name in ("text_projection", "visual.proj") else value
    for query in [name for name in ours if ".attn.q_proj." in name]:
        parts = [ours.pop(query.replace(".q_proj.", f".{part}_proj."), None) for part in "qkv"]
        if all(part is not None for part in parts):
            ours[query.replace("q_proj.", "in_proj_")] = torch.cat(parts)
    return ours
