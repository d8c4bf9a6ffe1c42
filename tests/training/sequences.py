"""Encoders of sequences [B, T, D] whose layers mix time steps: recurrent ones, attention with masks, experts."""

import math

import torch
from kinds import WIDTH
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, rnn

STEPS, FEATURES = 6, 10


class Steps(nn.Module):
    """A layer for each step, what ``read`` makes of them all, and a layer that makes the embedding."""

    shape = (STEPS, FEATURES)

    def __init__(self):
        super().__init__()
        self.inputs, self.out = nn.Linear(FEATURES, 32), nn.Linear(32, WIDTH)

    def forward(self, x):
        return self.out(self.read(self.inputs(x).relu(), x))


def padding(x):
    """Return which steps are padding: none is the first."""
    quiet = x.abs().sum(2) < 0.8 * FEATURES
    return torch.cat([torch.zeros_like(quiet[:, :1]), quiet[:, 1:]], 1)


class Unrolled(Steps):
    def __init__(self, kind, **options):
        super().__init__()
        self.rnn = kind(32, 32 // (1 + options.get("bidirectional", False)), batch_first=True, **options)

    def read(self, h, x):
        return self.rnn(h)[0][:, -1]


class PackedSteps(Unrolled):
    def __init__(self):
        super().__init__(nn.LSTM, bidirectional=True)

    def read(self, h, x):
        lengths = STEPS - padding(x).sum(1)
        packed = rnn.pack_padded_sequence(h, lengths.cpu(), batch_first=True, enforce_sorted=False)
        return self.rnn(packed)[1][0].transpose(0, 1).flatten(1)


class PaddedTransformer(Steps):
    def __init__(self):
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 1)
        self.positions = nn.Parameter(torch.randn(STEPS, 32) / 6)

    def read(self, h, x):
        pad = padding(x)
        steps = self.encoder(h + self.positions, src_key_padding_mask=pad)
        return steps.masked_fill(pad[..., None], 0).sum(1) / (~pad).sum(1, keepdim=True)


class Masked(Steps):
    """Attention by hand, with a mask of ``value``; None for torch's own with a mask of bool."""

    def __init__(self, value=-math.inf):
        super().__init__()
        self.value, self.qkv, self.mixed = value, nn.Linear(32, 96), nn.Linear(32, 32)

    def read(self, h, x):
        q, k, v = self.qkv(h).view(-1, STEPS, 3, 4, 8).permute(2, 0, 3, 1, 4)
        pad = padding(x)[:, None, None]
        if self.value is None:
            mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=~pad)
        else:
            scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(8)
            mixed = scores.masked_fill(pad, self.value).softmax(-1) @ v
        return (h + self.mixed(mixed.transpose(1, 2).flatten(2))).mean(1)


class Rotary(Steps):
    """Rotary positions, and torch's own attention without heads."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(32, 32) for _ in range(3))

    def read(self, h, x):
        angles = torch.arange(STEPS)[:, None] * 1e4 ** (-torch.arange(16) / 16)

        def turn(y):
            first, second = y.chunk(2, -1)
            sine, cosine = angles.sin(), angles.cos()
            return torch.cat([first * cosine - second * sine, first * sine + second * cosine], -1)

        return functional.scaled_dot_product_attention(turn(self.query(h)), turn(self.key(h)), self.value(h)).mean(1)


class TiedTokens(Steps):
    """The embedding of tokens is the weight that tells them apart, too."""

    def __init__(self):
        super().__init__()
        self.embedding, self.told, self.mixed = nn.Embedding(11, 32), nn.Linear(32, 11, bias=False), nn.Linear(11, 32)
        self.told.weight = self.embedding.weight

    def read(self, h, x):
        tokens = (x[..., 0].clamp(-2, 2) * 2 + 5).long()
        return self.mixed(self.told(self.embedding(tokens) + h).softmax(-1)).mean(1)


class TiedAutoencoder(Steps):
    """One weight, read as it is and transposed."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Linear(32, 48)

    def read(self, h, x):
        return (h + functional.linear(self.wide(h).relu(), self.wide.weight.t())).mean(1)


class Normalised(Steps):
    def __init__(self, wrap):
        super().__init__()
        self.first, self.second = wrap(nn.Conv1d(32, 32, 3, padding=1)), nn.Conv1d(32, 32, 3, padding=1)

    def read(self, h, x):
        return self.second(self.first(h.transpose(1, 2)).relu()).mean(2)


class Experts(Steps):
    """Soft routing."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(32, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 32)) for _ in range(3))

    def read(self, h, x):
        shares = self.gate(h).softmax(-1)
        return torch.einsum("bte,bted->btd", shares, torch.stack([each(h) for each in self.experts], 2)).mean(1)


class Gated(Steps):
    """A gated feed-forward (SwiGLU) behind an RMSNorm."""

    def __init__(self):
        super().__init__()
        self.norm, self.narrow = nn.RMSNorm(32), nn.Linear(64, 32, bias=False)
        self.wide, self.gate = nn.Linear(32, 64, bias=False), nn.Linear(32, 64, bias=False)

    def read(self, h, x):
        y = self.norm(h)
        return (h + self.narrow(functional.silu(self.gate(y)) * self.wide(y))).mean(1)


class Dilated(Steps):
    """A causal network of dilated convolutions (TCN)."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv1d(32, 32, 3, dilation=dilation) for dilation in (1, 2, 4))

    def read(self, h, x):
        y = h.transpose(1, 2)
        for layer in self.layers:
            y = y + layer(functional.pad(y, (2 * layer.dilation[0], 0))).relu()
        return y[..., -1]


class Spectrum(nn.Module):
    shape = (64,)

    def __init__(self):
        super().__init__()
        self.hidden, self.out = nn.Linear(33, 32), nn.Linear(32, WIDTH)

    def forward(self, x):
        return self.out(self.hidden((torch.fft.rfft(x).abs() + 1e-6).log()).relu())


SEQUENCES = {
    "RNN": lambda: Unrolled(nn.RNN),
    "GRU": lambda: Unrolled(nn.GRU),
    "two LSTMs both ways": lambda: Unrolled(nn.LSTM, num_layers=2, bidirectional=True, dropout=0.1),
    "packed LSTM both ways": PackedSteps,
    "padded transformer": PaddedTransformer,
    "mask of -inf": Masked,
    "mask of -1e9": lambda: Masked(-1e9),
    "mask of bool": lambda: Masked(None),
    "rotary attention": Rotary,
    "tied tokens": TiedTokens,
    "tied autoencoder": TiedAutoencoder,
    "old weight_norm": lambda: Normalised(nn.utils.weight_norm),
    "spectral_norm": lambda: Normalised(parametrizations.spectral_norm),
    "experts": Experts,
    "gated, with RMSNorm": Gated,
    "dilated": Dilated,
    "spectrum": Spectrum,
}
