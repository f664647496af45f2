"""Image GPT, to be read beside section 2 of the paper.

    h^0 = embedded pixels + positions
    n^l = norm(h^l);  a^l = h^l + attention(n^l);  h^(l+1) = a^l + mlp(norm(a^l))
    n^L = norm(h^L);  logits = n^L W^T

Everything here follows OpenAI's released code (image-gpt, src/model.py) where the paper is silent:
the norm, the activation, the initialisation, the start token. The model knows tokens and nothing of
colours, files, processes or sampling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from igpt.attention import Cache, FixedCache, KVCache, attend
from igpt.config import ModelConfig
from igpt.kernels.activation import fast_quick_gelu, gelu_takes

NORM_EPS = 1e-5  # image-gpt src/model.py, norm(): x / rms(x) * gain
# Standard deviations of the initialisation, image-gpt src/model.py.
WTE_STD, WPE_STD, MLP_STD = 0.02, 0.01, 0.02


class Attention(nn.Module):
    """Multi-head attention; q, k and v come from one product, stacked in that order."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.n_head, self.causal = layer, config.n_head, config.causal
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        B, t, d = x.shape
        heads = self.qkv(x).view(B, t, 3, self.n_head, d // self.n_head)
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # each [B, H, t, d/H]
        bias = None
        if cache is not None:
            key, value = cache.extend(self.layer, key, value)  # [B, H, S, d/H]
            bias = cache.bias
        out = attend(query, key, value, self.causal, bias)  # [B, H, t, d/H]
        return self.proj(out.transpose(1, 2).reshape(B, t, d))


def quick_gelu(h: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), image-gpt src/model.py, gelu()."""
    return fast_quick_gelu(h) if gelu_takes(h) else h * torch.sigmoid(1.702 * h)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "quick_gelu": quick_gelu,
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


class MLP(nn.Module):
    """d -> 4d -> d."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.activation(self.fc(x)))


class Block(nn.Module):
    """One decoder block: attention and MLP, each on the normalised residual stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = nn.RMSNorm(config.n_embd, NORM_EPS)
        self.attn = Attention(config, layer)
        self.ln_2 = nn.RMSNorm(config.n_embd, NORM_EPS)
        self.mlp = MLP(config)

    def forward(self, h: Tensor, cache: Cache | None = None) -> Tensor:
        a = h + self.attn(self.ln_1(h), cache)
        return a + self.mlp(self.ln_2(a))


def draw_normal(tensor: Tensor, std: float) -> None:
    """Fill `tensor` where it is, from PyTorch's own generator."""
    tensor.normal_(std=std)


class ImageGPT(nn.Module):
    """The model of the paper, autoregressive (`config.causal`) or BERT.

    Weights are float32 and start as in OpenAI's code. Build it under `torch.device("meta")` and
    call `init_weights` after materialising it to choose where they live.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Parameter(torch.empty(config.vocab_size, config.n_embd))
        self.wpe = nn.Parameter(torch.empty(config.n_positions, config.n_embd))
        if config.causal:
            self.start = nn.Parameter(torch.empty(config.n_embd))
        blocks = [Block(config, layer) for layer in range(config.n_layer)]
        self.blocks: Sequence[Block] = nn.ModuleList(blocks)  # type: ignore[assignment]
        self.ln_f = nn.RMSNorm(config.n_embd, NORM_EPS)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.n_classes:
            self.clf = nn.Linear(config.n_embd, config.n_classes, bias=False)
        if not self.wte.is_meta:  # there PyTorch would import its compiler to draw nothing
            self.init_weights()

    @torch.no_grad()
    def init_weights(self, normal: Callable[[Tensor, float], object] = draw_normal) -> None:
        """OpenAI's initialisation; both heads start at zero, so the first loss is ln K.

        `normal` fills a tensor with normal numbers of the standard deviation that it is given.
        """
        d, n_layer = self.config.n_embd, self.config.n_layer
        normal(self.wte, WTE_STD)
        normal(self.wpe, WPE_STD)
        if self.config.causal:
            normal(self.start, WTE_STD)
        for module in self.modules():
            if isinstance(module, nn.RMSNorm):
                module.weight.fill_(1.0)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
            if isinstance(module, Attention):
                normal(module.qkv.weight, 1 / math.sqrt(d))
                normal(module.proj.weight, 1 / math.sqrt(d * n_layer))
            if isinstance(module, MLP):
                normal(module.fc.weight, MLP_STD)
                normal(module.proj.weight, MLP_STD)
        self.head.weight.zero_()
        if self.config.n_classes:
            self.clf.weight.zero_()

    def forward(self, tokens: Tensor, masked: Tensor | None = None) -> Tensor:
        """Logits [B, T, K] of every token of pictures `tokens` [B, T], whole numbers of any type.

        Autoregressive: the logits at i depend on the tokens before i only; the shift happens here.
        BERT: `masked` [B, T] is True where a token is hidden from the model.
        """
        return self.head(self.trunk(tokens, masked))

    def trunk(self, tokens: Tensor, masked: Tensor | None = None) -> Tensor:
        """n^L [B, T, d]: the last block's output after the final norm."""
        return self.ln_f(self._run_blocks(self.embed(tokens, masked)))

    def features(self, tokens: Tensor, masked: Tensor | None = None) -> Iterator[Tensor]:
        """n^0 to n^L in turn, each [B, T, d]: a block's normalised input, at last `trunk`'s output.

        Each is computed when it is asked for, so nothing above the last one taken is.
        """
        h = self.embed(tokens, masked)
        for block in self.blocks:
            yield block.ln_1(h)
            h = block(h)
        yield self.ln_f(h)

    def classify(self, n: Tensor) -> Tensor:
        """Class logits [B, C] of n^L [B, T, d], averaged over the sequence (paper, section 2.3)."""
        return self.clf(n.mean(dim=1))

    def next_logits(self, tokens: Tensor, cache: KVCache) -> Tensor:
        """Logits [B, K] of the token that follows `tokens` [B, t], the whole of the picture so far.

        Computes only the positions that `cache` does not hold yet, and adds them to it.
        """
        new = range(cache.length, tokens.shape[1] + 1)
        h = self._embed_causal(tokens, new)  # [B, t + 1 - length, d]
        h = self._run_blocks(h, cache)
        cache.length += len(new)
        return self.head(self.ln_f(h[:, -1]))

    def step_logits(self, tokens: Tensor, cache: FixedCache, room: int) -> Tensor:
        """Logits [B, K] of the token that follows `tokens` [B], those before `cache.position`.

        The same as `next_logits`, for a step that is recorded. `room` is how many positions it
        reads, those that are not stored yet among them. The caller moves the length on.
        """
        cache.set_room(room)
        h = F.embedding(tokens, self.wte) + self.wpe[cache.position]  # [B, d]
        h = self._run_blocks(h[:, None], cache)
        return self.head(self.ln_f(h[:, -1]))

    def new_cache(self, batch: int, dtype: torch.dtype | None = None) -> KVCache:
        """An empty cache for `batch` pictures, where the weights are; by default of their type."""
        c = self.config
        shape = (c.n_layer, batch, c.n_head, c.n_positions, c.n_embd // c.n_head)
        keys = torch.empty(shape, dtype=dtype or self.wte.dtype, device=self.wte.device)
        return KVCache(keys, torch.empty_like(keys))

    def embed(self, tokens: Tensor, masked: Tensor | None = None) -> Tensor:
        """h^0 [B, T, d]. BERT zeroes the hidden tokens before positions are added."""
        if self.config.can_sample:
            return self._embed_causal(tokens[:, :-1], range(tokens.shape[1]))
        h = F.embedding(tokens.long(), self.wte)
        if masked is not None:
            h = h * (~masked).unsqueeze(-1)
        return h + self.wpe[: tokens.shape[1]]

    def _embed_causal(self, before: Tensor, positions: range) -> Tensor:
        """Inputs at `positions`: the start token at 0, else the token before, from [B, t]."""
        tokens = before[:, max(positions.start - 1, 0) : positions.stop - 1]
        h = F.embedding(tokens.long(), self.wte)
        if positions.start == 0:
            start = self.start.expand(len(before), 1, -1)
            h = torch.cat((start, h), dim=1)
        return h + self.wpe[positions.start : positions.stop]

    def _run_blocks(self, h: Tensor, cache: Cache | None = None) -> Tensor:
        for block in self.blocks:
            h = block(h, cache)
        return h
