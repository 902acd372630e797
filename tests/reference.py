"""The plain implementation: the model, training step, evaluation, loader and rerank as the released code does them.

It is written from the description of that code, none of it copied, and shared by the tests and `python -m bench`. It
has the published parameter names, so that `to_published(model.state_dict())` of ours loads into it and both can be
compared number by number. In float32:

- ResNet-18 in the plain memory format; the concatenated and upsampled feature maps of MVSA are laid out in memory;
- attention with queries, keys and a softmax, although it is over one key;
- the GRU walks through the words in Python, padding included, with six matrix products and six dropout masks a word;
- Adam tensor by tensor, and the loss is read from the device at every step;
- evaluation keeps the images in float64, once per caption, and encodes both sides anew for every pair of blocks;
- the loader opens, decodes and transforms each image from its file, sample by sample, in two workers;
- the rerank sorts one query after the other, and for each candidate all queries, to find its position searching back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torchvision import transforms

from option.options import Fusion, Options
from util.transforms import LARGEST_ANGLE, MEAN, STD, resize_size

# ---------------------------------------------------------------- model


def l2norm(x: Tensor) -> Tensor:
    return x / (x.pow(2).sum(dim=-1, keepdim=True).sqrt() + 1e-8)


class ExtractFeature(nn.Module):
    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.resnet = torchvision.models.resnet18()
        self.linear = nn.Linear(512, embed_dim)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        net = self.resnet
        f1 = net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(images)))))
        f2 = net.layer2(f1)
        f3 = net.layer3(f2)
        f4 = net.layer4(f3)
        low = torch.cat((f1, functional.interpolate(f2, scale_factor=2)), dim=1)
        high = torch.cat((f3, functional.interpolate(f4, scale_factor=2)), dim=1)
        return low, high, self.linear(f4.mean(dim=(2, 3)))


class MVSA(nn.Module):
    def __init__(self, size: int, embed_dim: int) -> None:
        super().__init__()
        self.LF_conv = nn.Conv2d(192, 3, kernel_size=3, stride=4)
        self.HF_conv = nn.Conv2d(768, 3, kernel_size=1)
        self.conv1x1_1 = nn.Conv2d(6, 1, kernel_size=1)
        self.conv1x1_2 = nn.Conv2d(6, 1, kernel_size=1)
        self.solo_attention = nn.Linear(size * size, embed_dim)

    def forward(self, low: Tensor, high: Tensor, solo: Tensor) -> Tensor:
        low, high = self.LF_conv(low), self.HF_conv(high)
        both = torch.cat((low, high), dim=1) + high.mean(dim=1, keepdim=True)
        mask = self.solo_attention((self.conv1x1_1(both) * torch.sigmoid(self.conv1x1_2(both))).flatten(1))
        return l2norm(solo * torch.sigmoid(mask))


class LocalFeature(nn.Module):
    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(20, 20, bias=False)
        self.fc2 = nn.Linear(20, 10, bias=False)
        self.fc3 = nn.Linear(10, 20, bias=False)
        self.out = nn.Linear(400, embed_dim)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        for layer in (self.fc1, self.fc2, self.fc3):
            x = torch.relu(layer(torch.bmm(adjacency, x)))
        return l2norm(self.out(x.flatten(1)))


class Attention(nn.Module):
    def __init__(self, options: Fusion) -> None:
        super().__init__()
        size = options.mca_HIDDEN_SIZE
        self.heads = options.mca_MULTI_HEAD
        self.linear_v, self.linear_k = nn.Linear(size, size), nn.Linear(size, size)
        self.linear_q, self.linear_merge = nn.Linear(size, size), nn.Linear(size, size)
        self.dropout = nn.Dropout(options.mca_DROPOUT_R)

    def forward(self, value: Tensor, key: Tensor, query: Tensor) -> Tensor:
        """Sequences (B, length, D); here the length is 1."""
        layers = (self.linear_v, value), (self.linear_k, key), (self.linear_q, query)
        v, k, q = (layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer, x in layers)
        weights = self.dropout((q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(dim=-1))
        return self.linear_merge((weights @ v).transpose(1, 2).flatten(2))


class FFN(nn.Module):
    def __init__(self, options: Fusion) -> None:
        super().__init__()
        self.mlp = nn.Module()  # under the published names
        self.mlp.fc = nn.Module()
        self.mlp.fc.linear = nn.Linear(options.mca_HIDDEN_SIZE, options.mca_FF_SIZE)
        self.mlp.linear = nn.Linear(options.mca_FF_SIZE, options.mca_HIDDEN_SIZE)
        self.dropout = nn.Dropout(options.mca_DROPOUT_R)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp.linear(self.dropout(torch.relu(self.mlp.fc.linear(x))))


class Norm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.a_2, self.b_2 = nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.a_2 * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6) + self.b_2


class SA(nn.Module):
    def __init__(self, options: Fusion) -> None:
        super().__init__()
        self.mhatt, self.ffn = Attention(options), FFN(options)
        self.norm1, self.norm2 = Norm(options.mca_HIDDEN_SIZE), Norm(options.mca_HIDDEN_SIZE)
        self.dropout = nn.Dropout(options.mca_DROPOUT_R)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.dropout(self.mhatt(x, x, x)))
        return self.norm2(x + self.dropout(self.ffn(x)))


class SGA(nn.Module):
    def __init__(self, options: Fusion) -> None:
        super().__init__()
        self.mhatt1, self.mhatt2, self.ffn = Attention(options), Attention(options), FFN(options)
        self.norm1, self.norm2, self.norm3 = (Norm(options.mca_HIDDEN_SIZE) for _ in range(3))
        self.dropout = nn.Dropout(options.mca_DROPOUT_R)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = self.norm1(x + self.dropout(self.mhatt1(x, x, x)))
        x = self.norm2(x + self.dropout(self.mhatt2(y, y, x)))
        return self.norm3(x + self.dropout(self.ffn(x)))


class DynamicFusion(nn.Module):
    """MIDF, with the gate that the options name."""

    def __init__(self, options: Fusion) -> None:
        super().__init__()
        self.gate = options.gate
        self.l2l_SA, self.g2g_SA = SA(options), SA(options)
        self.g2l_SGA, self.l2g_SGA = SGA(options), SGA(options)
        self.dynamic_weight = nn.Sequential(
            nn.Linear(options.mca_HIDDEN_SIZE, options.dynamic_fusion_dim),
            nn.Sigmoid(),
            nn.Dropout(options.dynamic_fusion_drop),
            nn.Linear(options.dynamic_fusion_dim, 2),
        )

    def forward(self, v_g: Tensor, v_l: Tensor) -> Tensor:
        v_g, v_l = self.g2g_SA(v_g.unsqueeze(1)), self.l2l_SA(v_l.unsqueeze(1))
        v_l = self.g2l_SGA(v_l, v_g)
        v_g = self.l2g_SGA(v_g, v_l)
        v_g, v_l = v_g.squeeze(1), v_l.squeeze(1)
        v_g, v_l = torch.sigmoid(v_l) * v_g, v_g + v_l
        gamma = self.dynamic_weight(v_g + v_l).softmax(dim=-1)
        return gamma[:, :1] * v_g + (gamma[:, 1:] if self.gate == "paper" else gamma[:, :1]) * v_l


class GRUCell(nn.Module):
    """One word: six products, each with a mask of its sequence."""

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.weight_ir, self.weight_ii, self.weight_in = (nn.Linear(size, hidden) for _ in range(3))
        self.weight_hr, self.weight_hi, self.weight_hn = (nn.Linear(hidden, hidden, bias=False) for _ in range(3))

    def forward(self, x: Tensor, h: Tensor, masks: Sequence[Tensor | None]) -> Tensor:
        xr, xi, xn, hr, hi, hn = (y if m is None else y * m for y, m in zip((x, x, x, h, h, h), masks, strict=True))
        reset = torch.sigmoid(self.weight_ir(xr) + self.weight_hr(hr))
        update = torch.sigmoid(self.weight_ii(xi) + self.weight_hi(hi))
        candidate = torch.tanh(self.weight_in(xn) + reset * self.weight_hn(hn))
        return (1 - update) * candidate + update * h


class GRU(nn.Module):
    def __init__(self, size: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.gru_cell = GRUCell(size, hidden)
        self.hidden, self.dropout = hidden, dropout

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Return the states (B, H) at the last real words of x (B, T, E), padded."""
        h = x.new_zeros(len(x), self.hidden)
        masks = [None] * 6
        if self.training and self.dropout:
            masks = [functional.dropout(torch.ones_like(y), self.dropout) for y in (x[:, 0],) * 3 + (h,) * 3]
        states = []
        for word in x.unbind(1):
            h = self.gru_cell(word, h, masks)
            states.append(h)
        last = (lengths - 1).to(x.device)[:, None, None].expand(-1, 1, self.hidden)
        return torch.stack(states, dim=1).gather(1, last).squeeze(1)


class TextFeature(nn.Module):
    def __init__(self, options: Options, words: int) -> None:
        super().__init__()
        seq2vec = options.model.seq2vec
        self.seq2vec = nn.Module()  # under the published names
        self.seq2vec.embedding = nn.Embedding(words + 1, seq2vec.embedding_dim, padding_idx=0)
        self.seq2vec.rnn = GRU(seq2vec.embedding_dim, seq2vec.hidden_dim, seq2vec.dropout)
        self.to_out = nn.Linear(seq2vec.hidden_dim, options.model.embed.embed_dim)

    def forward(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        return torch.relu(self.to_out(self.seq2vec.rnn(self.seq2vec.embedding(token_ids), lengths)))


class Baseline(nn.Module):
    """GaLR with `BayesianUniSkip`, done plainly, under the published names."""

    def __init__(self, options: Options, words: int) -> None:
        super().__init__()
        embed_dim = options.model.embed.embed_dim
        self.extract_feature = ExtractFeature(embed_dim)
        self.mvsa = MVSA(options.dataset.image_size // 16, embed_dim)
        self.local_feature = LocalFeature(embed_dim)
        self.text_feature = TextFeature(options, words)
        self.fusion = DynamicFusion(options.model.fusion)

    def forward(
        self, images: Tensor, local_rep: Tensor, local_adj: Tensor, token_ids: Tensor, lengths: Tensor
    ) -> Tensor:
        """Return the cosine similarities (B, B), as ours does."""
        visual = self.fusion(self.mvsa(*self.extract_feature(images)), self.local_feature(local_rep, local_adj))
        return l2norm(visual) @ l2norm(self.text_feature(token_ids, lengths)).T


# ---------------------------------------------------------------- training step


def triplet_loss(scores: Tensor, margin: float) -> Tensor:
    """Return the sum over all negatives."""
    own = scores.diagonal().view(-1, 1)
    captions = (margin + scores - own.expand_as(scores)).clamp(min=0)
    images = (margin + scores - own.t().expand_as(scores)).clamp(min=0)
    eye = torch.eye(len(scores), device=scores.device) > 0.5
    return captions.masked_fill(eye, 0).sum() + images.masked_fill(eye, 0).sum()


def train_step(model: Baseline, optimizer: torch.optim.Adam, batch: Sequence[Tensor], margin: float) -> float:
    """Take a step: forward, backward, update. Return the loss."""
    loss = triplet_loss(model(*batch), margin)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


# ---------------------------------------------------------------- evaluation


class Stored(NamedTuple):
    """Inputs of evaluation, one row a caption: images in float64 (M, 3, S, S), local features, token_ids, lengths."""

    images: np.ndarray
    local_rep: Tensor
    local_adj: Tensor
    token_ids: Tensor
    lengths: Tensor


def store(
    images: Tensor,
    local_rep: Tensor,
    local_adj: Tensor,
    token_ids: Tensor,
    lengths: Tensor,
    caption_to_image: np.ndarray,
) -> Stored:
    """Lay out images (N, 3, S, S) in float64, each as often as it has captions."""
    stored = np.zeros((len(caption_to_image), *images.shape[1:]))
    for caption, image in enumerate(caption_to_image):
        stored[caption] = images[image].numpy()
    return Stored(stored, local_rep[caption_to_image], local_adj[caption_to_image], token_ids, lengths)


def block_row(model: Baseline, stored: Stored, rows: np.ndarray, size: int, device: torch.device) -> np.ndarray:
    """Return the similarities of one block of images, given by its captions, with all captions, block by block."""
    sims = []
    for start in range(0, len(stored.lengths), size):
        images = torch.from_numpy(stored.images[rows]).float().to(device)
        local_rep, local_adj = stored.local_rep[rows].to(device), stored.local_adj[rows].to(device)
        block = slice(start, start + size)
        token_ids, lengths = stored.token_ids[block].to(device), stored.lengths[block]
        sims.append(model(images, local_rep, local_adj, token_ids, lengths).cpu().numpy())
    return np.concatenate(sims, axis=1)


# ---------------------------------------------------------------- loader


class Files(torch.utils.data.Dataset):
    """Each sample is opened, decoded and transformed when it is asked for."""

    def __init__(self, paths: Sequence[str], image_size: int) -> None:
        self.paths = paths
        self.transform = transforms.Compose(
            [
                transforms.Resize((resize_size(image_size),) * 2),
                transforms.RandomRotation((0, LARGEST_ANGLE)),
                transforms.RandomCrop(image_size),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> Tensor:
        return self.transform(Image.open(self.paths[row]).convert("RGB"))


def loader(paths: Sequence[str], image_size: int, batch_size: int) -> torch.utils.data.DataLoader:
    """Return shuffled batches from two workers."""
    return torch.utils.data.DataLoader(Files(paths, image_size), batch_size, shuffle=True, num_workers=2)


# ---------------------------------------------------------------- rerank


def plain_multivariate(sims: np.ndarray, k: int, w_similarity: float, w_reverse: float, xi: float = 0.05) -> np.ndarray:
    """Rerank the rows of `sims`, variant `released`; zero outside the candidates."""
    scores = np.zeros(sims.shape)
    columns = np.ascontiguousarray(sims.T)  # the layout that is kind to it
    share = sims / sims.sum(axis=0)
    fading = np.exp(-xi * np.arange(1, k + 1))
    for i, row in enumerate(sims):
        candidates = np.argsort(row)[::-1][:k]
        back = [np.where(np.argsort(columns[j])[::-1] == i)[0][0] for j in candidates]
        place = np.argsort(np.argsort(back, kind="stable"))
        scores[i, candidates] = fading + w_similarity * share[i, candidates] + w_reverse * fading[place]
    return scores
