"""COTR's mask transformer: queries that each find one class's voxels, and the rules that make labels of them.

Sources: cotr-spec.md 8 and 9.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from gdfusion_ros.model.blocks.camera_attention import FeedForward
from gdfusion_ros.model.blocks.occ_encoder import HEADS, VolumeAttention
from gdfusion_ros.model.watch import Watch

QUERIES = 100
"""Of one group; the only one that predicts."""
GROUPS = (3, 7, 7, 5, 5)
"""Classes of the five further groups of queries, which exist only in training."""
CLASS_SCORE = 0.7
"""A query with a lower score of its class is left out."""
MASK_SCORE = 0.3
"""From here on a voxel belongs to a query's mask."""
OVERLAP = 0.8
"""A query of which less than this share of its mask is its own is left out."""
STUFF_GROWTH = 3
"""A stuff class that owns more than this many times its mask is cut back to the mask."""
FIRST_STUFF = 11
"""Labels below are things (others .. truck), from here on stuff."""


class Queries(NamedTuple):
    """What the decoder found."""

    class_logits: Tensor
    """(B, Q, classes), the last class being free."""
    mask_embeddings: Tensor
    """(B, Q, C): a voxel's mask logit is the product with its mask feature."""


class SelfAttention(nn.Module):
    """Ordinary attention of queries among themselves; entries ``in_proj`` and ``out_proj``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.in_proj = nn.Linear(channels, 3 * channels)
        self.out_proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """(B, Q, C); queries and keys carry the positions, values do not."""
        channels = x.shape[-1]
        weight, bias = self.in_proj.weight, self.in_proj.bias
        query_key = nn.functional.linear(x + positions, weight[: 2 * channels], bias[: 2 * channels])
        value = nn.functional.linear(x, weight[2 * channels :], bias[2 * channels :])
        query, key, value = (
            part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (*query_key.chunk(2, dim=-1), value)
        )
        seen = nn.functional.scaled_dot_product_attention(query, key, value)
        result: Tensor = self.out_proj(seen.transpose(1, 2).flatten(2))
        return result


class MaskDecoderLayer(nn.Module):
    """Attention into the volume, attention among the queries, a feed-forward network; a norm behind each."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cross = VolumeAttention(channels)
        self.own = SelfAttention(channels)
        self.ffns = nn.ModuleList([FeedForward(channels, 2 * channels)])
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))

    def forward(
        self,
        content: Tensor,
        positions: Tensor,
        references: Tensor,
        tokens: Tensor,
        spatial: tuple[int, int, int],
        watch: Watch,
    ) -> Tensor:
        """Content (B, Q, C), unchanged in shape.

        ``positions`` (Q, C); ``references`` (Q, 3) in 0..1 ordered z, y, x; ``tokens`` (B, n, C) of the volume of
        ``spatial`` (X, Y, Z).
        """
        x = content + self.cross(content + positions, tokens, references, spatial)
        watch.show(decoder_cross=x.transpose(0, 1))
        # Oddity (cotr-spec.md 12.5): what is added to is x before its norm; everywhere else it is the normed value.
        x = x + self.own(self.norms[0](x), positions)
        watch.show(decoder_self=x.transpose(0, 1))
        x = self.norms[1](x)
        return cast(Tensor, self.norms[2](x + self.ffns[0](x)))


class MaskDecoder(nn.Module):
    """Learned queries, their layer, and what each of them says: a class, and an embedding that makes its mask."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.query_embedding = nn.Embedding(QUERIES * (1 + len(GROUPS)), 2 * channels)
        self.reference_points = nn.Linear(channels, 3)
        self.layer = MaskDecoderLayer(channels)
        self.class_embed = nn.ModuleList(nn.Linear(channels, n) for n in (classes, *GROUPS))
        wide = 2 * channels
        self.mask_embed = nn.ModuleList(
            [
                nn.Linear(channels, wide),
                nn.Linear(wide, wide),
                nn.Linear(wide, channels),
            ]
        )

    def forward(self, volume: Tensor, watch: Watch) -> Queries:
        """What the queries find in a volume (B, C, Z, Y, X)."""
        spatial = (volume.shape[4], volume.shape[3], volume.shape[2])
        tokens = volume.permute(0, 4, 3, 2, 1).flatten(1, 3)
        # The first half of the columns is the position, the second the content.
        positions, content = self.query_embedding.weight[:QUERIES].chunk(2, dim=1)
        references = self.reference_points(positions).sigmoid()
        content = content.expand(len(volume), -1, -1)
        decoded = self.layer(content, positions, references, tokens, spatial, watch)
        embedded = decoded
        for layer in self.mask_embed[:-1]:
            embedded = layer(embedded).relu()
        class_logits = self.class_embed[0](decoded)
        watch.show(decoder_out=decoded.transpose(0, 1)[None], class_logits=class_logits[0])
        return Queries(class_logits, self.mask_embed[-1](embedded))


def confident(class_logits: Tensor) -> Tensor:
    """(Q,) whether each query (Q, classes) says something: not free, and sure of it."""
    score, label = class_logits.softmax(dim=-1).max(dim=-1)
    free = class_logits.shape[-1] - 1
    return (label != free) & (score > CLASS_SCORE)


def mask_labels(class_logits: Tensor, mask_logits: Tensor, counts: Tensor) -> Tensor:
    """Labels (X, Y, Z) uint8 from queries (K, classes), their masks (K, X, Y, Z), and which of them count (K,).

    The rules are written without a look at any value, so that nothing waits for an accelerator.
    """
    free = class_logits.shape[-1] - 1
    labels = mask_logits.new_full(mask_logits.shape[1:], free, dtype=torch.uint8)
    if not len(class_logits):
        return labels
    scores, classes = class_logits.softmax(dim=-1).max(dim=-1)
    masks = mask_logits.sigmoid()
    claims = torch.where(counts[:, None, None, None], scores[:, None, None, None] * masks, -1.0)
    owner = claims.argmax(dim=0)
    for k, label in enumerate(classes):
        owned, mask = owner == k, masks[k] >= MASK_SCORE
        owns, size = owned.sum().double(), mask.sum().double()
        counted = counts[k] & (owns > 0) & (size > 0) & (owns / size >= OVERLAP)
        cut_back = (label < FIRST_STUFF) | (owns > STUFF_GROWTH * size)
        region = torch.where(owns <= size, mask | owned, torch.where(cut_back, mask, owned))
        labels = torch.where(region & counted, label.to(torch.uint8), labels)
    return labels


def merged_labels(semantic: Tensor, masks: Tensor, free: int) -> Tensor:
    """The voxel head's labels, with the things that only the masks see; both (X, Y, Z)."""
    # Oddity (cotr-spec.md 12.7): stuff that the masks see never survives.
    things = torch.where(masks < FIRST_STUFF, masks, torch.full_like(masks, free))
    return torch.where(semantic != free, semantic, things)
