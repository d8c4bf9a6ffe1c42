"""The recipe: what to build. Each stage has one frozen, validated config, which is read from TOML.

Every field has a default and a description; ``edgekd recipe schema`` prints both as a JSON schema.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

if TYPE_CHECKING:
    from collections.abc import Mapping

_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d{1,3})?")

#: Seconds for a target's repair where neither a budget nor effort = "best" says otherwise.
_REPAIR_S = 300.0
#: The largest magnitude of an input that never changes.
_LARGEST = 10**15

Pool = Literal["auto", "none", "spatial", "tokens", "first"]
Precision = Literal["float32", "bfloat16", "float16"]
Kind = Literal[
    "auto", "classes", "multilabel", "regression", "dense-classes", "sequence-classes", "embedding", "custom"
]

Effort = Literal["quick", "normal", "best"]
Fraction = Annotated[float, Meta(ge=0, le=1)]
#: A factor on a loss; with more, what it stands beside is lost in the rounding of float32.
Factor = Annotated[float, Meta(ge=0, le=1_000_000)]
Epochs = Annotated[int, Meta(ge=1, le=100_000)]
Steps = Annotated[int, Meta(ge=0, le=10_000_000)]
Rate = Annotated[float, Meta(ge=1e-9, le=10)]


class _Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base class of every section."""


class TaskConfig(_Config, frozen=True):
    """The task to build: data, teacher and student."""

    name: Annotated[
        str,
        Meta(min_length=1, description="A shipped task ('digits'), 'path/to/file.py:Name', or 'package.module:Name'."),
    ]
    options: Annotated[dict[str, Any], Meta(description="Keyword arguments of the task's class or function.")] = {}


class OutputConfig(_Config, frozen=True):
    """What one output of an imported network is."""

    kind: Annotated[
        Kind,
        Meta(
            description="Scores of 'classes' of which one is right, of labels any of which may be ('multilabel'), of "
            "classes at every position of a map [batch, classes, ...] or step of a sequence [batch, steps, classes], "
            "numbers ('regression'), an 'embedding', which is compared with others by its direction, or anything else "
            "('custom'). 'auto' tells it by labels and by the output's values, and says so."
        ),
    ] = "auto"
    threshold: Annotated[
        Annotated[float, Meta(ge=-1_000_000_000, le=1_000_000_000)] | None,
        Meta(
            description="Where a label of 'multilabel' is decided, a probability, by default 0.5; or where a number of "
            "'regression' or 'custom' is, by default nowhere."
        ),
    ] = None
    blank: Annotated[
        Annotated[int, Meta(ge=0, le=1_000_000)] | None,
        Meta(description="Of 'sequence-classes' the class that is CTC's blank; by default every step is a token."),
    ] = None
    index: Annotated[
        Literal["float", "own"],
        Meta(
            description="What an 'embedding' is compared with: an index that stays as the float network made it, or "
            "one of the compressed network's 'own'."
        ),
    ] = "float"


class ModelConfig(_Config, frozen=True):
    """A trained network imported from ONNX, in place of a task: nothing is trained, distilled or pruned."""

    path: Annotated[str, Meta(min_length=1, description="The ONNX file: of a float network, or, with as_is, of any.")]
    calibration: Annotated[
        str,
        Meta(
            min_length=1,
            description="An .npz of real samples, one row for each: an array for each input of the graph, by name; "
            "'labels' (class indices), 'groups' and 'ids' where there are any.",
        ),
    ]
    test: Annotated[
        str,
        Meta(description="An .npz with the samples of the gate. By default half of the calibration samples are kept."),
    ] = ""
    taps: Annotated[
        dict[str, str],
        Meta(
            description="For each modality the tensor that is its embedding. By default the inputs of the node where "
            "the graph's inputs meet, or else the outputs."
        ),
    ] = {}
    outputs: Annotated[
        dict[str, Kind | OutputConfig],
        Meta(
            description="The outputs that the engine gives, under their own names, and what each is: a kind, or a "
            "table. By default all outputs of floats, each of the kind that it is told to be, and the build shows why."
        ),
    ] = {}
    states: Annotated[
        dict[str, str] | Literal["auto", "none"],
        Meta(
            description="For each input that is a state the output that holds it after a step, to be fed at the next; "
            "'none' where there is none. By default they are found by type, sizes and names, such as h and hn."
        ),
    ] = "auto"
    fix: Annotated[
        dict[str, Annotated[int, Meta(ge=-_LARGEST, le=_LARGEST)] | Annotated[float, Meta(ge=-_LARGEST, le=_LARGEST)]],
        Meta(
            description="Inputs that never change, such as a sampling rate, and the number that each is: they become "
            "constants of the engine, and branches that they decide are folded."
        ),
    ] = {}
    kind: Annotated[Kind, Meta(description="What the output is, of a network that has one: in place of outputs.")] = (
        "auto"
    )
    threshold: Annotated[
        Annotated[float, Meta(ge=-1_000_000_000, le=1_000_000_000)] | None,
        Meta(description="Where a label or a number is decided, of a network that has one output."),
    ] = None
    metric: Annotated[
        str,
        Meta(
            description="A metric of your own, 'path/to/file.py:name' or 'package.module:name': a function of outputs "
            "and targets, which are 'labels' or a dict of all arrays of the samples that are no inputs; larger is "
            "better unless it has higher_is_better = False."
        ),
    ] = ""
    as_is: Annotated[
        bool,
        Meta(
            description="Check, profile and bundle the model in its own precision, INT8, float16 or any other, and "
            "quantize nothing."
        ),
    ] = False
    reference: Annotated[
        str, Meta(description="With as_is: the float ONNX file that the model is compared with. Without, nothing is.")
    ] = ""

    def __post_init__(self) -> None:
        if self.reference and not self.as_is:
            raise ValueError("model.reference is what a model is compared with that is built as it is: set model.as_is")
        if self.outputs and (self.kind != "auto" or self.threshold is not None):
            raise ValueError("model.kind and model.threshold are of the only output: leave them out beside outputs")

    @property
    def state_pairs(self) -> dict[str, str] | None:
        """For each input that is a state the output that holds it after a step; None to find them."""
        if isinstance(self.states, dict):
            return self.states
        return {} if self.states == "none" else None

    @property
    def asked(self) -> dict[str, OutputConfig]:
        """What each of the outputs is that are named."""
        return {
            name: value if isinstance(value, OutputConfig) else OutputConfig(kind=value)
            for name, value in self.outputs.items()
        }


class Tap(_Config, frozen=True):
    """The place in a network where one modality's embedding is read."""

    module: Annotated[
        str, Meta(min_length=1, description="Path of the module whose output is the embedding, e.g. 'encoders.accel'.")
    ]
    pool: Annotated[
        Pool,
        Meta(
            description="How an output of more than two dimensions becomes one vector for each sample: 'spatial' "
            "averages all dimensions after the channels [B, C, ...], 'tokens' averages a sequence [B, T, D], or a grid "
            "whose channels are last [B, H, W, D], over all tokens, 'first' takes a sequence's first token, 'none' "
            "refuses to pool, 'auto' pools [B, C, H, W] spatially and asks for a choice at three dimensions, which "
            "may be either."
        ),
    ] = "auto"
    call: Annotated[
        int,
        Meta(ge=0, le=10_000, description="Which call of the module, when one forward pass calls it several times."),
    ] = 0
    output: Annotated[
        Annotated[int, Meta(ge=-1000, le=1000)] | str | None,
        Meta(
            description="Which part of an output that is no tensor itself: an index into a tuple or list, or the name "
            "of an item or attribute. By default the first, 'last_hidden_state', or the only tensor that has a name."
        ),
    ] = None


Taps = Annotated[
    dict[str, str | Tap],
    Meta(description="For each modality the module path of its embedding, or a table {module, pool, call, output}."),
]


class Training(_Config, frozen=True):
    """Settings of every stage that trains."""

    #: Epochs of a training whose length is "auto", where these are min_steps or more.
    auto_epochs: ClassVar[int] = 30

    epochs: Annotated[
        Epochs | Literal["auto"],
        Meta(
            description="Passes over the training split. A number is taken as it is. 'auto' is 30, in a fine-tune "
            "after pruning 20 and with fake quantization 10; of a small split as many more as min_steps asks for, at "
            "most ten times that."
        ),
    ] = "auto"
    min_steps: Annotated[
        Steps, Meta(description="With epochs = 'auto': the steps, one for each batch, that training has at least.")
    ] = 1200
    batch_size: Annotated[
        int, Meta(ge=2, le=1_000_000, description="Samples in each step. Batch-wide Gram scopes depend on it.")
    ] = 64
    accumulate: Annotated[
        int,
        Meta(
            ge=1,
            le=1_000_000,
            description="Number of parts that each batch is split into, which are computed one after another to need "
            "less memory. Batch-wide losses then see pairs of samples of one part alone.",
        ),
    ] = 1
    optimizer: Annotated[
        str,
        Meta(
            min_length=1,
            description="'adamw', 'adam', 'sgd', or one of your own as 'path/to/file.py:name': a function of the "
            "parameters, the learning rate and the weight decay that returns a torch.optim.Optimizer.",
        ),
    ] = "adamw"
    learning_rate: Annotated[Rate, Meta(description="Peak learning rate.")] = 2e-3
    momentum: Annotated[float, Meta(ge=0, lt=1, description="Momentum of 'sgd'.")] = 0.9
    weight_decay: Annotated[
        float, Meta(ge=0, le=100, description="The optimizer's weight decay, which of 'adamw' is decoupled.")
    ] = 1e-2
    schedule: Annotated[
        str,
        Meta(
            min_length=1,
            description="How the learning rate goes on from its peak: 'onecycle', 'cosine' and 'linear' take it to 0, "
            "'constant' keeps it; or one of your own as 'path/to/file.py:name', a function of the share of the steps "
            "after the warm-up that are done, from 0 to 1, which returns the share of the peak.",
        ),
    ] = "onecycle"
    warm_up: Annotated[
        Fraction | None,
        Meta(
            description="Over this share of the steps the learning rate rises to its peak; by default 0.3 of "
            "'onecycle', and 0 of the others."
        ),
    ] = None
    clip_norm: Annotated[
        Annotated[float, Meta(gt=0, le=1_000_000)] | None,
        Meta(description="Largest norm of all gradients of a step together; larger ones are scaled down to it."),
    ] = None
    ema: Annotated[
        float,
        Meta(
            ge=0,
            lt=1,
            description="Decay of a running average of the weights over the steps, such as 0.999, which is then what "
            "is validated and kept; 0 takes no average. The first steps are soon forgotten.",
        ),
    ] = 0.0
    keep: Annotated[
        Literal["best", "last"],
        Meta(
            description="Which epoch's weights are kept: those with the best metric on the validation split, of equals "
            "the latest, or those of the last epoch."
        ),
    ] = "best"
    patience: Annotated[
        Annotated[int, Meta(ge=1, le=100_000)] | None,
        Meta(
            description="Training ends after that many epochs in which the metric on the validation split was no "
            "better than before; by default it has all its epochs. A schedule that takes the learning rate to 0 is "
            "then cut short, so 'constant' suits it best."
        ),
    ] = None


class TeacherConfig(Training, frozen=True):
    """Train the teacher, or load it."""

    weights: Annotated[
        str, Meta(description="Load these weights (.safetensors, or a state dict saved by torch) instead of training.")
    ] = ""
    precision: Annotated[
        Precision,
        Meta(
            description="Type in which its layers with weights compute while the student learns from it. The teacher "
            "in the ledger and its ONNX are float32 whatever this is."
        ),
    ] = "float32"
    members: Annotated[
        int,
        Meta(
            ge=1,
            le=100,
            description="How many teachers to train, from seed, seed + 1, ...: the student learns from their mean "
            "probability and aligns with the mean of their Grams.",
        ),
    ] = 1
    taps: Taps = {}

    def __post_init__(self) -> None:
        if self.weights and self.members > 1:
            raise ValueError(
                f"teacher.weights is of one network, and teacher.members asks for {self.members}: leave one of the "
                "two out"
            )


class StudentConfig(_Config, frozen=True):
    """The places where the student's embeddings are read, and its weights where it is trained already."""

    weights: Annotated[
        str,
        Meta(
            description="Load these weights (.safetensors, or a state dict saved by torch) instead of distilling: a "
            "student that was trained elsewhere is pruned, quantized, checked and shipped. Then the task need not have "
            "a teacher."
        ),
    ] = ""
    taps: Taps = {}


class Term(_Config, frozen=True, omit_defaults=True):
    """One loss beside the cross entropy and KD, by name: one of edgekd's, or the user's own."""

    loss: Annotated[
        str | None,
        Meta(
            description="A loss of edgekd, or one of your own as 'path/to/file.py:name' or 'package.module:name'. By "
            "default the table's own name."
        ),
    ] = None
    share: Annotated[
        Factor,
        Meta(
            description="With weight = 'auto': the norm of the loss's gradient on the embeddings is held at this "
            "multiple of that of the logit losses; 0 switches it off."
        ),
    ] = 1.0
    weight: Annotated[
        Literal["auto"] | Factor,
        Meta(description="'auto' holds the share; a fixed number does not."),
    ] = "auto"
    warm_up: Annotated[
        Fraction, Meta(description="Over this share of the steps the loss is raised from 0 to its weight.")
    ] = 0.0
    decay: Annotated[
        Literal["none", "linear", "cosine"], Meta(description="How the weight falls to 0 from there to the last step.")
    ] = "none"
    modalities: Annotated[list[str], Meta(description="Modalities that the loss aligns; by default all.")] = []
    pairs: Annotated[
        list[str], Meta(description="Pairs 'a-b' of modalities that a loss between modalities aligns; by default all.")
    ] = []
    student: Taps = {}
    teacher: Taps = {}
    options: Annotated[
        dict[str, Any], Meta(description="The loss's own options, which may also stand beside the keys above.")
    ] = {}

    def table(self) -> dict[str, Any]:
        """Return the term as a recipe's table without what is default, the loss's own options beside the other keys."""
        table: dict[str, Any] = msgspec.to_builtins(self)
        options = table.pop("options", {})
        return {**table, **options}


def extra_table(extra: Mapping[str, float | Term]) -> dict[str, Any]:
    """Return losses as a recipe's table ``extra``: for each a share or a table."""
    return {name: term.table() if isinstance(term, Term) else term for name, term in extra.items()}


#: Losses that distillation adds to CE and KD; docs/explanation/distill.md measures what they are worth.
DEFAULT_EXTRA: dict[str, float | Term] = {"intra": Term(share=3.0, options={"centered": True}), "sample": 0.1}

#: Losses that the fine-tunes add, whose anchor is the unpruned student: the gate measures 'sample'.
ANCHOR_EXTRA: dict[str, float | Term] = {"intra": 1.0, "sample": 1.0}


class LossConfig(_Config, frozen=True):
    """The distillation loss: ``ce * CE + kd * T^2 * KL + sum over extra of weight * loss``."""

    ce: Annotated[Factor, Meta(description="Weight of the cross entropy with the labels.")] = 0.1
    kd: Annotated[Factor, Meta(description="Weight of T^2 * KL(teacher || student).")] = 0.9
    temperature: Annotated[float, Meta(ge=0.01, le=1000, description="T, the softening of both sides' logits.")] = 4.0
    extra: Annotated[
        dict[str, Factor | Term],
        Meta(
            description="Losses that are added, by name: a number is the share of one with its defaults, as in "
            "{ intra = 1.0, sample = 0.1 }; a table says more. {} adds none.",
            extra_json_schema={"default": extra_table(DEFAULT_EXTRA)},
        ),
    ] = msgspec.field(default_factory=DEFAULT_EXTRA.copy)

    def __post_init__(self) -> None:
        if not self.ce and not self.kd:
            held = [name for name, term in self.terms.items() if term.weight == "auto"]
            if held:
                raise ValueError(
                    f"ce and kd are 0, so '{held[0]}' has no gradient to hold a share of: give it a number as weight"
                )
            if not self.terms:
                raise ValueError("ce and kd are 0 and nothing is added: there is no loss")

    @property
    def terms(self) -> dict[str, Term]:
        """The losses that are added, by name, without those that are switched off; each states its loss."""
        terms = {}
        for name, value in self.extra.items():
            term = value if isinstance(value, Term) else Term(share=value)
            if term.share if term.weight == "auto" else term.weight:
                terms[name] = replace(term, loss=term.loss or name)
        return terms


class DistillConfig(Training, frozen=True):
    """Train the student from the teacher."""

    cache_teacher: Annotated[
        bool,
        Meta(
            description="Compute the teacher's logits and embeddings of the training split once, keep them on disk and "
            "read them while training, in the fine-tunes too. Samples that a split augments go to the teacher itself."
        ),
    ] = False
    loss: LossConfig = LossConfig()
    modality_dropout: Annotated[
        Fraction,
        Meta(
            description="Probability that a modality of a training sample is replaced by its training mean, for the "
            "student alone; one modality of a sample always stays."
        ),
    ] = 0.0


def without_teacher(loss: LossConfig) -> LossConfig:
    """Return losses without taps of the teacher's own, for a training in which another network takes its place."""
    extra = {
        name: replace(value, teacher={}) if isinstance(value, Term) else value for name, value in loss.extra.items()
    }
    return replace(loss, extra=extra)


_FINE_TUNED = (
    "Keys not given here are those of [distill.loss]; but extra is { intra = 1, sample = 1 }, since 'sample' is what "
    "the gate measures, unless [distill.loss] has extra = {}."
)


class PruneBudget(_Config, frozen=True):
    """Budget of the pruned network as a share of the unpruned one's; exactly one of the three is given."""

    parameters: Annotated[float, Meta(gt=0, lt=1, description="Share of the weights to keep.")] | None = None
    macs: Annotated[float, Meta(gt=0, lt=1, description="Share of the multiply-accumulates to keep.")] | None = None
    latency: Annotated[float, Meta(gt=0, lt=1, description="Share of ONNX Runtime's p50 on this machine.")] | None = (
        None
    )

    def __post_init__(self) -> None:
        given = [value for value in (self.parameters, self.macs, self.latency) if value is not None]
        if len(given) != 1:
            raise ValueError("prune.budget: give exactly one of parameters, macs and latency")


class PruneConfig(Training, frozen=True):
    """Remove channels in dependency groups, then fine-tune with the unpruned student as Gram anchor."""

    auto_epochs: ClassVar[int] = 20

    min_steps: Annotated[
        Steps, Meta(description="With epochs = 'auto': the steps that each fine-tune has at least.")
    ] = 400
    learning_rate: Annotated[Rate, Meta(description="Peak learning rate of the fine-tune.")] = 1e-3
    keep: Annotated[
        Literal["best", "last"],
        Meta(
            description="Which epoch's weights are kept: those of the last one, which were held to the unpruned "
            "student longest, or those with the best metric on the validation split."
        ),
    ] = "last"
    ratio: Annotated[float, Meta(ge=0, lt=1, description="Share of channels to remove; 0 switches pruning off.")] = 0.25
    ratios: Annotated[
        dict[str, Annotated[float, Meta(ge=0, lt=1)]],
        Meta(description="Share of channels to remove from the encoder of a modality, in place of ratio."),
    ] = {}
    budget: Annotated[
        PruneBudget | None,
        Meta(
            description="One budget for the whole network, in place of ratio: the channels that are least important "
            "for what they cost are removed first, so each branch loses what it can spare."
        ),
    ] = None
    steps: Annotated[
        int, Meta(ge=1, le=100, description="Rounds of cutting and fine-tuning; each takes all epochs.")
    ] = 1
    importance: Annotated[
        Literal["gram", "magnitude", "taylor", "random", "fpgm"],
        Meta(
            description="How groups of channels are ranked: 'gram' by how far the modality Gram and the logits would "
            "move without them, 'magnitude', 'taylor', 'random' and 'fpgm' as in torch-pruning."
        ),
    ] = "gram"
    round_to: Annotated[
        Annotated[int, Meta(ge=1, le=1024)] | None,
        Meta(description="Widths stay multiples of this; by default of what all targets of the build ask for."),
    ] = None
    ignore: Annotated[list[str], Meta(description="Paths of modules whose width must not change.")] = []
    repair: Annotated[
        Literal["auto", "off"],
        Meta(
            description="What to do about a pruned network that the gate rejects on the validation split: 'auto' "
            "prunes less and fine-tunes longer until it passes, and at last leaves the student unpruned; 'off' leaves "
            "it rejected."
        ),
    ] = "auto"
    repair_s: Annotated[
        float,
        Meta(
            ge=0,
            le=1_000_000,
            description="Seconds that attempts after the first may take together; one that would take longer is not "
            "begun, and the student stays unpruned.",
        ),
    ] = 600.0
    loss: Annotated[LossConfig, Meta(description=_FINE_TUNED)] = LossConfig(extra=ANCHOR_EXTRA)

    @property
    def active(self) -> bool:
        """Whether anything is to be removed."""
        return bool(self.budget or self.ratio or any(self.ratios.values()))


class ExportConfig(_Config, frozen=True):
    """Export the networks to ONNX."""

    tolerance: Annotated[
        float,
        Meta(
            ge=1e-9, le=1, description="Largest |ONNX - torch| allowed, as a share of the output's largest magnitude."
        ),
    ] = 1e-4


class QatConfig(Training, frozen=True):
    """Fine-tune with fake quantization, held by the unpruned student: the last resort of the repair."""

    auto_epochs: ClassVar[int] = 10

    min_steps: Annotated[
        Steps, Meta(description="With epochs = 'auto': the steps that the fine-tune has at least.")
    ] = 200
    keep: Annotated[
        Literal["best", "last"],
        Meta(
            description="Which epoch's weights are kept: those of the last one, which were held to the unpruned "
            "student longest, or those with the best metric on the validation split."
        ),
    ] = "last"
    loss: Annotated[LossConfig, Meta(description=_FINE_TUNED)] = LossConfig(extra=ANCHOR_EXTRA)


class QuantizeConfig(_Config, frozen=True):
    """Write the network in the precisions of the target; INT8 in the scheme that the target states."""

    precision: Annotated[
        Literal["best", "int8", "float16", "float32"],
        Meta(
            description="'best' builds and measures all that the target has, and ships the fastest that the gate lets "
            "through; a precision leaves no choice."
        ),
    ] = "best"
    quantizers: Annotated[
        list[str],
        Meta(
            description="Quantizers that write INT8, in place of those of the target: 'qdq', 'nncf', 'dynamic', "
            "'weights8', 'weights4', or your own. Each is tried, whether or not it promises to be faster."
        ),
    ] = []
    effort: Annotated[
        Effort,
        Meta(
            description="How long INT8 may take to write and to mend: 'quick' is the shortest way, and nothing is "
            "mended; 'normal' minutes, and only where a look at its speed says that INT8 "
            "can win; 'best' tries INT8 all the same, and measures every layer."
        ),
    ] = "normal"
    budget_s: Annotated[
        float,
        Meta(
            ge=0,
            le=604_800,
            description="Seconds for each target's repair of INT8, what finds out where it breaks included; what was "
            "mended until then is kept. 0 is what the effort allows: no limit with 'best', else 300 s.",
        ),
    ] = 0.0
    calibration: Annotated[
        str,
        Meta(
            description="A shipped calibration or the path of a .toml, whatever the effort; 'auto' is 'minmax' with "
            "effort = 'quick', else 'reconstruct'."
        ),
    ] = "auto"
    repair: Annotated[
        Literal["auto", "best", "off"],
        Meta(
            description="What to do about INT8 that the gate rejects: 'auto' returns the layers that hurt most to "
            "float until it passes, and fine-tunes with fake quantization where that is not enough, but with effort = "
            "'quick'; 'best' also returns layers where it passes, as far as that costs no latency beyond 'slack'; "
            "'off' leaves it rejected."
        ),
    ] = "auto"
    slack: Annotated[
        Fraction,
        Meta(
            description="How much latency a closer output may cost, as a share of the p50 of the fastest candidate: "
            "where repair is 'best', and where a candidate is chosen."
        ),
    ] = 0.0
    qat: QatConfig = QatConfig()

    def __post_init__(self) -> None:
        if len(set(self.quantizers)) < len(self.quantizers):
            raise ValueError("quantize.quantizers: each may be named once only")

    @property
    def ranges_and_rounding(self) -> str:
        """The calibration that is used: the one that is named, or the effort's."""
        if self.calibration != "auto":
            return self.calibration
        return "minmax" if self.effort == "quick" else "reconstruct"

    @property
    def mends(self) -> bool:
        """Whether INT8 that the gate rejects is repaired."""
        return self.repair == "best" or (self.repair == "auto" and self.effort != "quick")

    @property
    def repair_s(self) -> float:
        """The time for a target's repair in s."""
        return self.budget_s or (math.inf if self.effort == "best" else _REPAIR_S)


class GateConfig(_Config, frozen=True):
    """Limits that a build must keep, measured against the unpruned student: what ships on the test split.

    The choice of what ships is made on the validation split.
    """

    tau_pass: Annotated[float, Meta(gt=0, le=1000, description="A drift bound up to this passes.")] = 0.02
    tau_fail: Annotated[
        float, Meta(gt=0, le=1000, description="A drift above this fails; between the two it warns.")
    ] = 0.04
    max_divergence: Annotated[
        Annotated[float, Meta(gt=0, le=1_000_000)] | None,
        Meta(
            description="Largest mean divergence of the output: of classes the KL divergence in nats, 0.02; of labels "
            "that a value each stands for, likewise, 0.01; of numbers the squared error over the variance, 0.015; of "
            "embeddings the change of cosines, 0.03. By default the one of the output's kind."
        ),
    ] = None
    max_flips: Annotated[Fraction, Meta(description="Largest share of answers that change, such as top-1 classes.")] = (
        0.05
    )
    max_missing_flips: Annotated[Fraction, Meta(description="The same where a modality is absent; more warns.")] = 0.08
    max_metric_drop: Annotated[float, Meta(ge=0, le=1_000_000, description="Largest fall of the task metric.")] = 0.015
    min_learned: Annotated[
        Fraction,
        Meta(
            description="Share of what the teacher's metric is better than the best constant answer's that the student "
            "should have; less warns."
        ),
    ] = 0.9
    structure: Annotated[
        Literal["auto", "strict"],
        Meta(
            description="A drift above tau_fail fails: 'strict' always, 'auto' where the answers are not shown to have "
            "stayed, or are embeddings; otherwise it warns."
        ),
    ] = "auto"
    undecided: Annotated[
        Literal["release", "reject"],
        Meta(description="What becomes of a build of which the samples are too few to tell."),
    ] = "release"
    confidence: Annotated[float, Meta(gt=0.5, le=0.9999, description="Confidence of each one-sided bound.")] = 0.95
    resamples: Annotated[int, Meta(ge=200, le=100_000, description="Bootstrap resamples behind a bound.")] = 1000


class ProfileConfig(_Config, frozen=True):
    """How latency, memory and energy are measured."""

    threads: Annotated[int, Meta(ge=1, le=1024, description="Number of threads of one inference.")] = 1
    iterations: Annotated[
        int, Meta(ge=1, le=10_000_000, description="Timed inferences of each engine, at batch 1.")
    ] = 2000
    warmup: Annotated[
        int,
        Meta(
            ge=0, le=1_000_000, description="Untimed inferences of each engine before the timed ones, in each process."
        ),
    ] = 100
    cold_starts: Annotated[
        int,
        Meta(
            ge=1,
            le=1000,
            description="Fresh processes that time loading and the first run, and share the timed inferences. Fewer "
            "processes give wider intervals; a single one says nothing about how processes differ.",
        ),
    ] = 8
    limit_s: Annotated[
        float,
        Meta(
            ge=0,
            le=86_400,
            description="Where opening and timing all engines would take longer, there are fewer inferences, and "
            "quantiles for which they are too few are withheld. A build's profile takes no longer than what the build "
            "did before it, either, but for half a minute. 0 is no limit.",
        ),
    ] = 120.0
    compute: Annotated[
        bool, Meta(description="Also time computing alone, without taking inputs and giving outputs.")
    ] = True
    layers: Annotated[
        bool, Meta(description="Also time each layer under the library's profiler, added up by modality.")
    ] = True
    rate_hz: Annotated[
        Annotated[float, Meta(ge=0.1, le=10_000)] | None,
        Meta(description="Also measure for 10 s at the rate of a sensor, from a sample's arrival to its result."),
    ] = None
    sustained_s: Annotated[
        float,
        Meta(ge=0, le=86_400, description="Also run each engine back to back for this time, as a device grows hot."),
    ] = 0.0
    energy_s: Annotated[
        float,
        Meta(
            ge=0,
            le=3600,
            description="Where a power sensor can be read: seconds for which it is read idle, and then busy, to "
            "measure the energy of an inference; 0 measures none.",
        ),
    ] = 3.0
    rails: Annotated[
        list[str], Meta(description="Names of the power sensors to add up; by default the target's power_rails.")
    ] = []


class SearchConfig(_Config, frozen=True):
    """Keys of the recipe that ``edgekd search`` varies."""

    space: Annotated[
        dict[str, Any],
        Meta(
            description="Keys of this recipe below task.options, teacher, student, distill and prune, each with a "
            "range, { low = 2.0, high = 8.0, log = true } (or step) or short [2.0, 8.0], or with choices: a list of "
            "anything else, or { choices = [8, 16] }. At a loss's 'extra' a word names the losses to add, 'kd' none, "
            "'intra+sample' two; 'extra.*' is a factor on the shares of all. What is named is all that varies; by "
            "default extra, extra.*, temperature, how much is pruned and, of a shipped task, the student's width."
        ),
    ] = {}


class RobustnessConfig(_Config, frozen=True):
    """What losing or spoiling a modality costs: two passes over the test split for each modality and network."""

    measure: Annotated[bool, Meta(description="Whether robustness is measured.")] = True
    noise: Annotated[
        float,
        Meta(
            gt=0,
            le=1000,
            description="Standard deviation of the Gaussian noise, in training standard deviations of each channel.",
        ),
    ] = 1.0


class ReportConfig(_Config, frozen=True):
    """What the report shows of the test split."""

    samples: Annotated[
        bool,
        Meta(
            description="Whether the report shows samples: names, groups, what was said of them, and small pictures "
            "of inputs, of those that what ships gets worst and of those whose answer changed. Counts of classes are "
            "in it either way."
        ),
    ] = True


class Recipe(_Config, frozen=True):
    """A whole ``edgekd.toml``, with a task to train for or with a model that was trained elsewhere."""

    task: TaskConfig | None = None
    model: ModelConfig | None = None
    seed: Annotated[int, Meta(ge=0, lt=2**31, description="Seed of every random choice.")] = 0
    threads: Annotated[
        Annotated[int, Meta(ge=1, le=1024)] | Literal["auto"],
        Meta(
            description="Threads that training computes with on the CPU. Other numbers make other weights, so it is no "
            "matter of the machine; large networks on many cores train faster with more. 'auto' times a few steps with "
            "one thread and with one for each core before anything is trained, says which is faster, and takes it: "
            "another machine may choose otherwise.",
        ),
    ] = 1
    device: Annotated[
        str,
        Meta(
            description="What training computes on: 'auto' (the first CUDA GPU, or else the CPU), 'cpu', 'cuda', "
            "'cuda:1', or 'mps'."
        ),
    ] = "auto"
    workers: Annotated[
        int,
        Meta(
            ge=0,
            le=256,
            description="Processes that read and augment training samples ahead of the training; 0 reads them between "
            "steps. Any number gives the same samples. A split in memory needs none.",
        ),
    ] = 0
    log: Annotated[
        str,
        Meta(
            description="Where the figures of each epoch go, beside the report: 'tensorboard', or a function of your "
            "own as 'path/to/file.py:name', which is called with the stage, the epoch's number and its figures."
        ),
    ] = ""
    teacher: TeacherConfig = TeacherConfig()
    student: StudentConfig = StudentConfig()
    distill: DistillConfig = DistillConfig()
    prune: PruneConfig = PruneConfig()
    export: ExportConfig = ExportConfig()
    quantize: QuantizeConfig = QuantizeConfig()
    gate: GateConfig = GateConfig()
    profile: ProfileConfig = ProfileConfig()
    search: SearchConfig = SearchConfig()
    robustness: RobustnessConfig = RobustnessConfig()
    report: ReportConfig = ReportConfig()

    def __post_init__(self) -> None:
        if (self.task is None) == (self.model is None):
            raise ValueError("give either a [task] to train for or a [model] that is trained already")
        if not _DEVICE.fullmatch(self.device):
            raise ValueError(f"device: there is no '{self.device}': write 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps'")
        if self.gate.tau_fail < self.gate.tau_pass:
            raise ValueError("gate.tau_fail must not be below gate.tau_pass")
