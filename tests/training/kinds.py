"""Encoders of many kinds, small, each beside a plain one: what cannot be pruned in the one must not cost the other."""

import torch
from small import CLASSES, mlp
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

IMAGE, VECTOR, WIDTH = (3, 8, 8), (5,), 8


class Beside(nn.Module):
    """An encoder of images beside one of vectors."""

    def __init__(self, encoder):
        super().__init__()
        self.a, self.b, self.head = encoder, mlp(5, 32, WIDTH), nn.Linear(2 * WIDTH, CLASSES)

    def forward(self, a, b):
        return self.head(torch.cat([self.a(a), self.b(b)], 1).relu())


class Stem(nn.Module):
    """A convolution whose 32 channels are read in a way of ``read``, and a layer that makes the embedding."""

    def __init__(self, inputs=32, stride=2, out=WIDTH):
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 32, 3, stride, 1), nn.Linear(inputs, out)

    def forward(self, x):
        return self.out(self.read(self.conv(x).relu()))

    def read(self, x):
        return x.mean((2, 3))


class Flat(Stem):
    def __init__(self):
        super().__init__(32 * 16)

    def read(self, x):
        return x.flatten(1)


class ChannelsLast(Flat):
    def read(self, x):
        return x.permute(0, 2, 3, 1).flatten(1)


class Frames(Stem):
    def __init__(self):
        super().__init__(32 * 2, stride=1)

    def forward(self, x):
        halves = x.view(-1, 3, 2, 4, 8).transpose(1, 2)
        return self.out(self.conv(halves.flatten(0, 1)).relu().mean((2, 3)).view(len(x), -1))


class Shuffled(Stem):
    def __init__(self):
        super().__init__()
        self.mix = nn.Conv2d(32, 32, 3, groups=2, padding=1)

    def read(self, x):
        return self.mix(functional.channel_shuffle(x, 2)).relu().mean((2, 3))


class Rolled(Stem):
    def read(self, x):
        return x.roll(3, 1).mean((2, 3))


class Flipped(Stem):
    def read(self, x):
        return x.flip(1).mean((2, 3))


class FlippedResidual(Stem):
    def __init__(self):
        super().__init__()
        self.second = nn.Conv2d(32, 32, 1)

    def read(self, x):
        return (x + self.second(x).flip(1)).mean((2, 3))


class Whispered(Stem):
    """A branch that reads its channels in another order, and hardly counts."""

    def __init__(self):
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(32, 64, 1), nn.Conv2d(64, 32, 1)

    def read(self, x):
        return (x + 1e-9 * self.narrow(self.wide(x).relu().roll(5, 1))).mean((2, 3))


class Indexed(Stem):
    def read(self, x):
        return x[:, [*range(16, 32), *range(16)]].mean((2, 3))


class Interleaved(Stem):
    def read(self, x):
        return torch.stack([x[:, ::2], x[:, 1::2]], 2).flatten(1, 2).mean((2, 3))


class Recurrent(Stem):
    def __init__(self, kind=nn.GRU, **options):
        super().__init__()
        self.rnn = kind(32, 32 // (1 + options.get("bidirectional", False)), batch_first=True, **options)

    def read(self, x):
        return self.rnn(x.flatten(2).transpose(1, 2))[0].mean(1)


class LastState(Recurrent):
    def __init__(self):
        super().__init__(nn.LSTM, bidirectional=True)

    def read(self, x):
        return self.rnn(x.flatten(2).transpose(1, 2))[1][0].transpose(0, 1).flatten(1)


class Normed(Stem):
    """A norm over the channels of each position."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm()

    def read(self, x):
        return self.norm(x.flatten(2).transpose(1, 2)).mean(1)


class ScaleNorm(nn.Module):
    """RMSNorm by hand."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(32))

    def forward(self, x):
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * self.scale


class Grouped(Stem):
    def __init__(self, norm):
        super().__init__()
        self.norm = norm()

    def read(self, x):
        return self.norm(x).relu().mean((2, 3))


class Split(Stem):
    """Half of the channels goes through a convolution, as in YOLO's C2f."""

    def __init__(self):
        super().__init__()
        self.second = nn.Conv2d(16, 16, 3, padding=1)

    def read(self, x):
        first, second = x.chunk(2, 1)
        return torch.cat([first, self.second(second + first).relu()], 1).mean((2, 3))


class Mixer(Stem):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Sequential(nn.Linear(16, 48), nn.GELU(), nn.Linear(48, 16))

    def read(self, x):
        tokens = x.flatten(2)
        return (tokens + self.tokens(tokens)).mean(2)


class Sides(nn.Module):
    """Two layers side by side; of the left one the weight is computed, or shared with the right one."""

    def __init__(self, kind):
        super().__init__()
        wrap = {"weight_norm": parametrizations.weight_norm, "spectral": parametrizations.spectral_norm}
        self.left, self.right = wrap.get(kind, lambda layer: layer)(nn.Linear(96, 32)), nn.Linear(96, 32)
        if kind == "tied":
            self.right.weight = self.left.weight
        if kind == "old":
            self.left = nn.utils.weight_norm(self.left)
        self.out = nn.Linear(64, WIDTH)

    def forward(self, x):
        return self.out(torch.cat([self.left(x[..., :4].flatten(1)), self.right(x[..., 4:].flatten(1))], 1).relu())


class Slices(Stem):
    """A convolution that works in slices; a transposed one where it is said."""

    def __init__(self, transposed=False):
        super().__init__()
        self.sliced = nn.ConvTranspose2d(32, 32, 2, 2, groups=4) if transposed else nn.Conv2d(32, 32, 3, groups=4)
        self.point = nn.Conv2d(32, 32, 1)

    def read(self, x):
        return self.point(self.sliced(x).relu()).mean((2, 3))


class Halved(Stem):
    """A gated linear unit."""

    def __init__(self):
        super().__init__()
        self.wide, self.hidden = nn.Linear(32, 64), nn.Linear(32, 32)

    def read(self, x):
        return self.hidden(functional.glu(self.wide(x.mean((2, 3)))))


class Bag(Stem):
    """A bag of tokens beside the image."""

    def __init__(self):
        super().__init__()
        self.bag = nn.EmbeddingBag(5, 32)

    def forward(self, x):
        tokens = self.bag((x[:, 0, 0].clamp(-2, 2) + 2).long())
        return self.out(self.conv(x).relu().mean((2, 3)) + tokens)


class DeeplySupervised(Beside):
    """A second head on a map in the middle, which puts out a nest, in training alone."""

    def __init__(self):
        super().__init__(nn.Linear(32, WIDTH))
        self.first, self.second = nn.Conv2d(3, 32, 3, 2, 1), nn.Conv2d(32, 32, 3, padding=1)
        self.aux = nn.Sequential(nn.Conv2d(32, 24, 1), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, CLASSES, 1))

    def forward(self, a, b):
        middle = self.first(a).relu()
        logits = super().forward(self.second(middle).relu().mean((2, 3)), b)
        return {"logits": logits, "aux": self.aux(middle)} if self.training else logits


class Excited(Stem):
    """Channel attention (SE)."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Linear(32, 16), nn.Linear(16, 32)

    def read(self, x):
        gate = self.up(self.down(x.mean((2, 3))).relu()).sigmoid()
        return (x * gate[:, :, None, None]).mean((2, 3))


class Attended(Stem):
    """Attention over positions from mean and maximum of the channels (CBAM)."""

    def __init__(self):
        super().__init__()
        self.where = nn.Conv2d(2, 1, 3, padding=1)

    def read(self, x):
        told = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True).values], 1)
        return (x * self.where(told).sigmoid()).mean((2, 3))


class Einsum(Stem):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(32, 32) / 6)

    def read(self, x):
        return torch.einsum("bchw,cd->bd", x, self.weight)


class Shuffling(Stem):
    """PixelShuffle makes positions of channels."""

    def __init__(self):
        super().__init__(8)

    def read(self, x):
        return functional.pixel_shuffle(x, 2).mean((2, 3))


class Tokens(nn.Module):
    """An embedding of what the image is rounded to, with a layer beside it."""

    def __init__(self):
        super().__init__()
        self.embedding, self.beside = nn.Embedding(5, 32), nn.Linear(1, 32)
        self.hidden, self.out = nn.Linear(32, 32), nn.Linear(32, WIDTH)

    def forward(self, x):
        x = x.flatten(1)[:, :9]
        tokens = self.embedding((x.clamp(-2, 2) + 2).long()) + self.beside(x[..., None])
        return self.out(self.hidden(tokens.relu()).relu().mean(1))


class Transformer(Stem):
    def __init__(self):
        super().__init__()
        self.block = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)

    def read(self, x):
        return self.block(x.flatten(2).transpose(1, 2)).mean(1)


class Borrowed(Stem):
    """A layer that is never called: its weight is read."""

    def __init__(self):
        super().__init__()
        self.lent = nn.Conv2d(32, 32, 1)

    def read(self, x):
        return functional.conv2d(x, self.lent.weight).relu().mean((2, 3))


class Doubtful(Stem):
    """An activation that is not 0 at 0."""

    def read(self, x):
        return functional.softplus(x).sigmoid().mean((2, 3))


class Folded(Stem):
    """Depthwise, with a batch norm, two residual branches and an activation at the end."""

    def __init__(self):
        super().__init__()
        self.depth, self.norm = nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.BatchNorm2d(32)
        self.point = nn.Conv2d(32, 32, 1)

    def read(self, x):
        return (x + self.point(self.norm(self.depth(x)).relu())).relu().mean((2, 3))


class Auxiliary(Beside):
    """Deep supervision: a second head that only training mode runs."""

    def __init__(self):
        super().__init__(nn.Linear(32, WIDTH))
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU())
        self.aux = mlp(32, 24, CLASSES)

    def forward(self, a, b):
        features = self.stem(a).mean((2, 3))
        logits = super().forward(features, b)
        return (logits, self.aux(nn.functional.dropout(features, 0.5))) if self.training else logits


class AuxiliaryVector(Auxiliary):
    """The second head is one layer, whose width a loss counts on."""

    def __init__(self):
        super().__init__()
        self.aux = nn.Linear(32, 16)


class AuxiliaryMap(Auxiliary):
    """The second head reads a map with its channels last."""

    def __init__(self):
        super().__init__()
        self.aux = mlp(32 * 16, 24, CLASSES)

    def forward(self, a, b):
        features = self.stem(a)
        logits = Beside.forward(self, features.mean((2, 3)), b)
        if not self.training:
            return logits
        return {"logits": logits, "aux": self.aux(features.permute(0, 2, 3, 1).flatten(1))}


class StochasticDepth(Stem):
    """A branch that training leaves out for some samples."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)

    def read(self, x):
        branch = self.second(self.first(x).relu())
        if self.training:
            branch = branch * x.new_empty(len(x), 1, 1, 1).bernoulli_(0.8) / 0.8
        return functional.dropout(x + branch, 0.2, self.training).mean((2, 3))


# Below are networks as others write them.


class ConformerBlock(Stem):
    """Half a feed-forward, a convolution with GLU and depthwise, and a norm."""

    def __init__(self):
        super().__init__()
        self.feed = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64), nn.SiLU(), nn.Dropout(0.1), nn.Linear(64, 32))
        self.norm, self.wide = nn.LayerNorm(32), nn.Conv1d(32, 64, 1)
        self.depth = nn.Conv1d(32, 32, 3, padding=1, groups=32)
        self.batch, self.narrow, self.last = nn.BatchNorm1d(32), nn.Conv1d(32, 32, 1), nn.LayerNorm(32)

    def read(self, x):
        x = x.flatten(2).transpose(1, 2)
        x = x + 0.5 * self.feed(x)
        inner = functional.glu(self.wide(self.norm(x).transpose(1, 2)), 1)
        inner = self.narrow(functional.silu(self.batch(self.depth(inner))))
        return self.last(x + inner.transpose(1, 2)).mean(1)


class UNet(nn.Module):
    def __init__(self):
        super().__init__()

        def block(inputs, width):
            return nn.Sequential(nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True))

        self.down, self.deep, self.bottom = block(3, 16), block(16, 32), block(32, 32)
        self.up, self.up2 = nn.ConvTranspose2d(32, 32, 2, 2), nn.ConvTranspose2d(32, 16, 2, 2)
        self.join, self.join2, self.out = block(64, 32), block(32, 16), nn.Linear(16, WIDTH)

    def forward(self, x):
        first = self.down(x)
        second = self.deep(functional.max_pool2d(first, 2))
        third = self.bottom(functional.max_pool2d(second, 2))
        second = self.join(torch.cat([self.up(third), second], 1))
        return self.out(self.join2(torch.cat([self.up2(second), first], 1)).mean((2, 3)))


class ConvNext(Stem):
    def __init__(self):
        super().__init__()
        self.depth, self.norm = nn.Conv2d(32, 32, 7, padding=3, groups=32), nn.LayerNorm(32)
        self.wide, self.narrow = nn.Linear(32, 64), nn.Linear(64, 32)
        self.scale = nn.Parameter(1e-6 * torch.ones(32))

    def read(self, x):
        inner = self.norm(self.depth(x).permute(0, 2, 3, 1))
        inner = self.scale * self.narrow(functional.gelu(self.wide(inner)))
        return (x + inner.permute(0, 3, 1, 2)).mean((2, 3))


class ShuffleUnit(Stem):
    """ShuffleNet V2."""

    def __init__(self):
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, groups=16),
            nn.BatchNorm2d(16), nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16), nn.ReLU(),
        )  # fmt: skip

    def read(self, x):
        first, second = x.chunk(2, 1)
        x = torch.cat([first, self.branch(second)], 1)
        x = x.view(len(x), 2, 16, *x.shape[2:]).transpose(1, 2).flatten(1, 2)
        return x.mean((2, 3))


class MBConv(Stem):
    def __init__(self):
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(32, 64, 1, bias=False), nn.BatchNorm2d(64), nn.SiLU())
        self.depth = nn.Sequential(nn.Conv2d(64, 64, 3, 1, 1, groups=64, bias=False), nn.BatchNorm2d(64), nn.SiLU())
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(64, 16, 1), nn.SiLU(), nn.Conv2d(16, 64, 1), nn.Sigmoid()
        )
        self.project = nn.Sequential(nn.Conv2d(64, 32, 1, bias=False), nn.BatchNorm2d(32))

    def read(self, x):
        inner = self.depth(self.expand(x))
        return (x + self.project(inner * self.gate(inner))).mean((2, 3))


class Decoder(nn.Module):
    """A GRU cell that is called in a loop, and reads what it said before."""

    def __init__(self):
        super().__init__()
        self.inputs, self.cell, self.say = nn.Linear(24, 32), nn.GRUCell(64, 32), nn.Linear(32, 32)
        self.out = nn.Linear(32, WIDTH)

    def forward(self, x):
        state = said = x.new_zeros(len(x), 32)
        for step in self.inputs(x.transpose(1, 2).flatten(2)).unbind(1):
            state = self.cell(torch.cat([step, said], 1), state)
            said = self.say(state).tanh()
        return self.out(said)


class OneEncoder(nn.Module):
    """Both modalities go through one encoder."""

    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.GroupNorm(4, 32), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.a.extend([nn.Flatten(), nn.Linear(32, WIDTH)])
        self.b, self.head = nn.Identity(), nn.Linear(2 * WIDTH, CLASSES)

    def forward(self, a, b):
        image = b[:, :3, None, None].expand(-1, 3, 8, 8)
        return self.head(torch.cat([self.a(a), self.b(self.a(image))], 1))
