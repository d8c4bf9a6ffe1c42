import numpy as np
import pytest
from chain import deep, inputs

from edgekd.compress.graph import initializers, open_at
from edgekd.compress.layers import find_layers, store
from edgekd.compress.walk import Walk

#: More than all activations of the chain, so little that nothing is kept, and something between.
SIZES = (10**9, 0, 3000)


class Counted(list):
    """Chunks of samples that count how often they are read."""

    read = 0

    def __iter__(self):
        self.read += 1
        return super().__iter__()


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    return deep(tmp_path_factory.mktemp("chain"), 6)


def chunks():
    x = inputs(24, seed=3)
    return Counted({"image": x[start : start + 8]} for start in range(0, 24, 8))


@pytest.mark.parametrize("most_bytes", SIZES)
def test_stages_give_what_the_whole_graph_gives(graphs, most_bytes):
    qdq, floats = graphs
    layers = find_layers(qdq, floats)
    for model, names in ((qdq, [x.source for x in layers]), (floats, [x.exact for x in layers])):
        session = open_at(model, names)
        samples = chunks()
        stages = [list(stage) for stage in Walk(model, samples, [[name] for name in names], most_bytes)]
        for index, feeds in enumerate(list(samples)):
            for name, stage, whole in zip(names, stages, session.run(names, feeds), strict=True):
                np.testing.assert_array_equal(stage[index][name], whole)


def test_samples_are_read_once_where_everything_fits(graphs):
    qdq, floats = graphs
    names = [[layer.source] for layer in find_layers(qdq, floats)]
    reads = {}
    for most_bytes in SIZES:
        samples = chunks()
        for stage in Walk(qdq, samples, names, most_bytes):
            assert len(list(stage)) == 3
        reads[most_bytes] = samples.read
    assert reads[10**9] == 1
    assert reads[0] == len(names)


@pytest.mark.parametrize("most_bytes", SIZES)
def test_what_is_changed_between_stages_counts_from_then_on(graphs, most_bytes):
    qdq, floats = graphs
    first, *_, last = find_layers(qdq, floats)
    changed = type(qdq)()
    changed.CopyFrom(qdq)
    before = open_at(qdq, [last.source])
    stages = iter(Walk(changed, chunks(), [[first.source], [last.source]], most_bytes))
    list(next(stages))
    store(changed, first.levels, np.zeros_like(first.stored(first.weights), np.int8))
    found = list(next(stages))
    exact = open_at(changed, [last.source])
    for feeds, values in zip(chunks(), found, strict=True):
        np.testing.assert_array_equal(values[last.source], exact.run([last.source], feeds)[0])
        assert not np.array_equal(values[last.source], before.run([last.source], feeds)[0])
    assert initializers(changed.graph).keys() == initializers(qdq.graph).keys()
