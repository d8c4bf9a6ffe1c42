"""Small networks with a state, as users export them, and sequences for them."""

import graphs
import numpy as np
from graphs import INT64, node, tensor, weights

SEQUENCES, STEPS, WIDTH = 8, 12, 4

#: Weights of a step: of the input, the state and the score. They are large, so that what is carried matters.
STORED = {"w": (WIDTH, 5), "u": (5, 5), "v": (5, 3)}


def steps(seed=0, **more):
    """Return sequences of a signal that wanders, a row a step, with the sequence that each is of."""
    random = np.random.default_rng(seed)
    x = np.cumsum(random.normal(size=(SEQUENCES, STEPS, WIDTH)), 1).reshape(-1, WIDTH).astype(np.float32)
    return {"x": x, "groups": np.repeat(np.arange(SEQUENCES), STEPS), **more}


def cell(path, state="h", after="hn", score="y", sizes=("n", 5), after_sizes=None, score_sizes=("n", 3), kind=None):
    """A recurrent cell by plain operators: h' = tanh(x W + h U), y = h' V."""
    nodes = [
        node("MatMul", ["x", "w"], ["of_input"]),
        node("MatMul", [state, "u"], ["of_state"]),
        node("Add", ["of_input", "of_state"], ["sum"]),
        node("Tanh", ["sum"], [after]),
        node("MatMul", [after, "v"], [score]),
    ]
    outputs = [tensor(score, score_sizes), tensor(after, after_sizes or sizes)]
    inputs = [tensor("x", ["n", WIDTH]), tensor(state, list(sizes), kind or graphs.FLOAT)]
    return graphs.write(path, nodes, inputs, outputs, weights(**STORED))


def lstm(path, bidirectional=False, hidden=6):
    """An LSTM of a recurrent layer's own operator: a step [1, n, 4], states h0 and c0 [D, n, 6]."""
    ways = 2 if bidirectional else 1
    nodes = [
        node("LSTM", ["x", "w", "r", "b", "", "h0", "c0"], ["all", "hn", "cn"], hidden_size=hidden,
             direction="bidirectional" if bidirectional else "forward"),
        node("Transpose", ["hn"], ["turned"], perm=[1, 0, 2]),
        node("Reshape", ["turned", "rows"], ["last"]),
        node("MatMul", ["last", "v"], ["y"]),
    ]  # fmt: skip
    inputs = [tensor("x", [1, "n", WIDTH]), tensor("h0", [ways, "n", hidden]), tensor("c0", [ways, "n", hidden])]
    outputs = [tensor("y", ["n", 3]), tensor("hn", [ways, "n", hidden]), tensor("cn", [ways, "n", hidden])]
    stored = weights(
        w=(ways, 4 * hidden, WIDTH), r=(ways, 4 * hidden, hidden), b=(ways, 8 * hidden), v=(ways * hidden, 3)
    )
    return graphs.write(path, nodes, inputs, outputs, [*stored, *graphs.integers(rows=[-1, ways * hidden])])


def by_rate(path):
    """A cell of which an input, the rate, chooses one of two sets of weights, by an ``If`` around it."""
    branches = {}
    for name, seed in (("then_branch", 1), ("else_branch", 2)):
        nodes = [
            node("MatMul", ["x", f"{name}_w"], [f"{name}_of_input"]),
            node("MatMul", ["h", f"{name}_u"], [f"{name}_of_state"]),
            node("Add", [f"{name}_of_input", f"{name}_of_state"], [f"{name}_sum"]),
            node("Tanh", [f"{name}_sum"], [f"{name}_hn"]),
            node("MatMul", [f"{name}_hn", f"{name}_v"], [f"{name}_y"]),
        ]
        stored = weights(seed, **{f"{name}_{key}": shape for key, shape in STORED.items()})
        given = [tensor(f"{name}_y", ["n", 3]), tensor(f"{name}_hn", ["n", 5])]
        branches[name] = graphs.helper.make_graph(nodes, name, [], given, stored)
    nodes = [
        node("Equal", ["rate", "wide"], ["is_wide"]),
        node("If", ["is_wide"], ["y", "hn"], name="by_rate", **branches),
    ]
    inputs = [tensor("x", ["n", WIDTH]), tensor("h", ["n", 5]), tensor("rate", [], INT64)]
    outputs = [tensor("y", ["n", 3]), tensor("hn", ["n", 5])]
    return graphs.write(path, nodes, inputs, outputs, graphs.integers(wide=16000))


def by_size(path):
    """A cell behind an ``If`` that asks how long the input is: it is decided where the size of samples is known."""
    long = graphs.helper.make_graph(
        [node("Identity", ["x"], ["as_it_is"])], "long", [], [tensor("as_it_is", ["n", WIDTH])]
    )
    short = graphs.helper.make_graph([node("Neg", ["x"], ["turned"])], "short", [], [tensor("turned", ["n", WIDTH])])
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "second"], ["length"], axis=0),
        node("Equal", ["length", "four"], ["is_long"]),
        node("If", ["is_long"], ["seen"], then_branch=long, else_branch=short),
        node("MatMul", ["seen", "w"], ["of_input"]),
        node("MatMul", ["h", "u"], ["of_state"]),
        node("Add", ["of_input", "of_state"], ["sum"]),
        node("Tanh", ["sum"], ["hn"]),
        node("MatMul", ["hn", "v"], ["y"]),
    ]
    inputs = [tensor("x", ["n", "length"]), tensor("h", ["n", 5])]
    outputs = [tensor("y", ["n", 3]), tensor("hn", ["n", 5])]
    return graphs.write(path, nodes, inputs, outputs, [*weights(**STORED), *graphs.integers(second=1, four=4)])


def growing(path):
    """A cache that is longer after each step: [n, t, 4] becomes [n, t + 1, 4]."""
    nodes = [
        node("Unsqueeze", ["x", "one"], ["row"]),
        node("Concat", ["past", "row"], ["present"], axis=1),
        node("ReduceMean", ["present"], ["mean"], axes=[1], keepdims=0),
        node("MatMul", ["mean", "w"], ["y"]),
    ]
    inputs = [tensor("x", ["n", WIDTH]), tensor("past", [1, "t", WIDTH])]
    outputs = [tensor("y", ["n", 5]), tensor("present", [1, "s", WIDTH])]
    return graphs.write(path, nodes, inputs, outputs, [*weights(w=(WIDTH, 5)), *graphs.integers(one=[1])])
