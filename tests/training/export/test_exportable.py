"""What torch's exporter cannot write is written otherwise, and computes the same."""

import copy

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, rnn

from edgekd.config.recipe import Tap
from edgekd.errors import ModelError
from edgekd.runtime.backends.onnxruntime import open_engine
from edgekd.training.export.exportable import exportable
from edgekd.training.export.onnx import ExportNetwork, write_onnx
from edgekd.training.taps.taps import TappedModel

STEPS, FEATURES, CLASSES = 3, 5, 3

pytestmark = pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")


class Sequences(nn.Module):
    """Reads a sequence [B, T, D] in a way of ``read``."""

    def __init__(self, width=8):
        super().__init__()
        self.inputs, self.head = nn.Linear(FEATURES, 8), nn.Linear(width, CLASSES)

    def forward(self, x):
        return self.head(self.read(self.inputs(x), x))


class Packed(Sequences):
    """The mean of each recurrent layer's outputs, and its last states, over sequences of many lengths."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(self.read(torch.zeros(1, STEPS, 8), torch.zeros(1, STEPS, FEATURES)).shape[1], CLASSES)

    def read(self, h, x):
        lengths = 1 + (x[:, 1:, 0] > 0).sum(1).cpu()
        return torch.cat([self.summary(layer, h, lengths) for layer in self.layers], 1)

    def summary(self, layer, h, lengths):
        first = layer.batch_first
        given = h if first else h.transpose(0, 1)
        packed, last = layer(rnn.pack_padded_sequence(given, lengths, first, enforce_sorted=False))
        y, lengths = rnn.pad_packed_sequence(packed, batch_first=True, total_length=STEPS)
        last = last if isinstance(last, tuple) else (last,)
        return torch.cat([y.sum(1) / lengths[:, None], *(z.transpose(0, 1).flatten(1) for z in last)], 1)


class Projected(Packed):
    """An LSTM that projects its outputs, over whole sequences too."""

    def read(self, h, x):
        whole, (last, _) = self.layers[0](h.transpose(0, 1))
        return torch.cat([super().read(h, x), whole.mean(0), last.transpose(0, 1).flatten(1)], 1)


class OneHead(Sequences):
    """Attention without a dimension for heads, of which padded steps are masked."""

    def read(self, h, x):
        mask = (x[..., 0] > -1)[:, None] | torch.eye(STEPS, dtype=torch.bool)
        return functional.scaled_dot_product_attention(h, h, h, mask).mean(1)


class Maxima(Sequences):
    """Maxima of parts that overlap."""

    def read(self, h, x):
        parts = nn.AdaptiveMaxPool2d((2, None))(h[:, None])[:, 0]
        return functional.adaptive_max_pool1d(parts, 5).repeat(1, 1, 2)[..., :8].mean(1)


class Causal(Sequences):
    """A causal mask, of which nothing says that it is one."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)

    def read(self, h, x):
        return self.encoder(h, mask=torch.ones(STEPS, STEPS, dtype=torch.bool).triu(1)).mean(1)


class Counted(Sequences):
    """Python's len() of a batch is a number."""

    def read(self, h, x):
        return h.view(len(h), STEPS, 2, 4).flatten(2).mean(1)


class Computed(Sequences):
    def __init__(self, wrap):
        super().__init__()
        self.mixed = wrap(nn.Linear(8, 8))

    def read(self, h, x):
        return self.mixed(h.mean(1)).relu()


NETWORKS = {
    "packed sequences": lambda: Packed(
        nn.GRU(8, 4, bias=False),
        nn.RNN(8, 4, nonlinearity="relu", batch_first=True),
        nn.RNN(8, 4),
        nn.LSTM(8, 4, 2, bidirectional=True, batch_first=True),
    ),
    "projection": lambda: Projected(nn.LSTM(8, 4, bidirectional=True, proj_size=3)),
    "attention without heads": OneHead,
    "adaptive maximum": Maxima,
    "causal mask": Causal,
    "len()": Counted,
    "orthogonal": lambda: Computed(parametrizations.orthogonal),
    "weight_norm": lambda: Computed(parametrizations.weight_norm),
    "old weight_norm": lambda: Computed(nn.utils.weight_norm),
    "old spectral_norm": lambda: Computed(nn.utils.spectral_norm),
}


def exported(model, path, count=5):
    torch.manual_seed(0)
    write_onnx(ExportNetwork(model, {"x": Tap(module="inputs", pool="tokens")}), {"x": samples(count)}, 18, path)


def samples(count):
    return torch.randn(count, STEPS, FEATURES, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_the_graph_computes_what_torch_does_for_any_number_of_samples(make, tmp_path):
    torch.manual_seed(0)
    model = make().eval()
    exported(model, tmp_path / "model.onnx")
    with open_engine(tmp_path / "model.onnx") as session:
        for count in (1, 17):
            given = session.run({"x": samples(count).numpy()})["logits"]
            np.testing.assert_allclose(given, model(samples(count)).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize(
    "kind", ["orthogonal", "weight_norm", "old weight_norm", "old spectral_norm", "packed sequences"]
)
def test_a_network_is_afterwards_what_it_was_and_is_trained_on(kind):
    torch.manual_seed(0)
    model = NETWORKS[kind]()
    model(samples(5))
    state = copy.deepcopy(model.state_dict())
    kinds = [type(layer) for layer in model.modules()]
    model.eval()
    with exportable(model):
        assert list(model.state_dict()) != list(state) or kind == "packed sequences"
    assert [type(layer) for layer in model.modules()] == kinds
    after = model.state_dict()
    assert sorted(after) == sorted(state)
    assert all(torch.equal(after[name], value) for name, value in state.items())
    torch.autograd.backward(model.train()(samples(4)).square().sum())
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_computed_weight_is_stored_and_its_node_bears_the_layers_name(tmp_path):
    for kind in ("weight_norm", "old weight_norm"):
        exported(NETWORKS[kind]().eval(), tmp_path / "model.onnx")
        graph = onnx.load(tmp_path / "model.onnx").graph
        assert {"mixed", "head"} <= {node.name for node in graph.node}
        assert "model.mixed.weight" in {tensor.name for tensor in graph.initializer}


def test_no_recurrence_is_given_lengths_which_engine_libraries_read_in_different_ways(tmp_path):
    exported(Packed(nn.LSTM(8, 4)).eval(), tmp_path / "model.onnx")
    (node,) = [node for node in onnx.load(tmp_path / "model.onnx").graph.node if node.op_type == "LSTM"]
    assert node.input[4] == ""


def test_a_batch_that_is_fixed_all_the_same_is_refused(tmp_path):
    class Fixed(Sequences):
        def read(self, h, x):
            return h.view(5, STEPS, 8).mean(1)

    with pytest.raises(ModelError, match=r"^Fixed works for batches of 5 only: its code fixes the batch"):
        exported(Fixed().eval(), tmp_path / "model.onnx")


def test_a_network_larger_than_a_file_can_hold_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("edgekd.training.export.onnx._LARGEST", 100)
    with pytest.raises(ModelError, match=r"^Counted has 0\.0 GB of weights; an ONNX file holds 2$"):
        exported(Counted().eval(), tmp_path / "model.onnx")


def test_a_padded_transformer_computes_one_thing_with_gradients_and_without():
    class Padded(Causal):
        def read(self, h, x):
            lengths = 1 + (x[:, 1:, 0] > 0).sum(1)
            return self.encoder(h, src_key_padding_mask=torch.arange(STEPS) >= lengths[:, None]).mean(1)

    torch.manual_seed(0)
    model = Padded().eval()
    torch.backends.mha.set_fastpath_enabled(True)  # whatever other tests have open
    with TappedModel(model, {"x": Tap(module="inputs", pool="tokens")}) as tapped:
        answers, _ = tapped([samples(9)])
        with torch.inference_mode():
            again, _ = tapped([samples(9)])
    torch.testing.assert_close(again["logits"], answers["logits"].detach())
    assert torch.backends.mha.get_fastpath_enabled()
