"""What a report says of the classes and samples of one output, as it stands in ``report.json``.

All of it is small: counts, curves of some points, and a few samples. A figure that there is none of is None.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

#: What answers are held against: the samples' own labels or targets, or, where there are none, the reference's answers.
Truth = Literal["labels", "reference"]

#: A picture that a page may show, and the numbers of a series: of a stranger's report nothing else is taken for them.
Png = Annotated[str, Meta(pattern="^(data:image/png;base64,[A-Za-z0-9+/=]*)?$")]
Channel = Annotated[str, Meta(pattern="^[0-9]{1,3}( [0-9]{1,3}){0,63}$")]


class ClassRow(Struct, frozen=True):
    """One class or label: how often it is true, how often it was said, and how often rightly.

    Attributes:
        name: Its name.
        support: How often it is true, in the table's unit.
        precision: For each model the share of what it said to be of the class that is; None where it never said so.
        recall: For each model the share of what is of the class that it said to be; None where there is none.
        overlap: For each model the intersection over union of what it said and what is, which segmentation calls IoU.
        average_precision: For each model the mean of the precision over all recalls, of labels that each are scored;
            empty for other outputs.
    """

    name: str
    support: int
    precision: dict[str, float | None]
    recall: dict[str, float | None]
    overlap: dict[str, float | None]
    average_precision: dict[str, float | None] = {}


class ConfusedPair(Struct, frozen=True):
    """Two classes that are taken for each other.

    Attributes:
        true: Name of the class that is right.
        said: Name of the class that was said instead.
        counts: For each model how often, in the table's unit.
    """

    true: str
    said: str
    counts: dict[str, int]


class ClassFigures(Struct, frozen=True):
    """The classes of an output.

    Attributes:
        unit: What is counted: "samples", "pixels", "tokens" or "labels".
        count: Number of classes in all; of more than 200 only those that what ships does worst are among the rows.
        rows: The classes in their order.
        confusion: How often a class (row) was said to be another (column) by what ships; empty for more than 50
            classes, and for labels any of which may hold.
        confused: The pairs that what ships confuses most often, the most frequent first.
    """

    unit: Literal["samples", "pixels", "tokens", "labels"]
    count: int
    rows: tuple[ClassRow, ...]
    confusion: tuple[tuple[int, ...], ...]
    confused: tuple[ConfusedPair, ...]

    def __post_init__(self) -> None:
        if self.confusion and {len(self.confusion), *map(len, self.confusion)} != {len(self.rows)}:
            raise ValueError(f"confusions are not those of {len(self.rows)} classes")


class DetailCurve(Struct, frozen=True):
    """A curve of one model, e.g. of precision over recall.

    Attributes:
        x: Its places on the horizontal axis.
        y: Its heights.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise ValueError(f"a curve has {len(self.x)} places and {len(self.y)} heights")


class ElementRow(Struct, frozen=True):
    """One number of an output of numbers.

    Attributes:
        element: Its place among a sample's numbers, counted from 0.
        deviation: Standard deviation of its true values.
        error: For each model the root mean squared error, in the output's own unit.
        bias: For each model the mean error, positive where the model says more than is true.
        r2: For each model the share of the variance that it explains; None where the true values do not vary.
    """

    element: int
    deviation: float
    error: dict[str, float | None]
    bias: dict[str, float | None]
    r2: dict[str, float | None]


class NumberFigures(Struct, frozen=True):
    """The numbers of an output, and their errors.

    Attributes:
        count: Numbers of one sample; of more than 64, no rows are given.
        rows: One for each number.
        edges: Edges of the bins of the histogram of errors, in standard deviations of each number's true values; the
            first and the last bin hold what lies beyond them too.
        histogram: For each model how many errors lie in each bin.
        points: For each model some of its samples as predicted (y) against true values (x), of the first number; empty
            where the report leaves samples out, and for maps.
    """

    count: int
    rows: tuple[ElementRow, ...]
    edges: tuple[float, ...]
    histogram: dict[str, tuple[int, ...]]
    points: dict[str, DetailCurve]

    def __post_init__(self) -> None:
        if len(self.edges) < 2 or any(len(counts) != len(self.edges) - 1 for counts in self.histogram.values()):
            raise ValueError(f"a histogram is not of the {len(self.edges) - 1} bins between its edges")


class RecallRow(Struct, frozen=True):
    """The retrieval of samples of one class, or of all.

    Attributes:
        name: Name of the class; "all" for all samples.
        support: Number of its samples.
        first: For each model the share of the queries whose nearest sample is of the same class.
        five: For each model the share of the queries of whose five nearest samples one is of the same class.
    """

    name: str
    support: int
    first: dict[str, float | None]
    five: dict[str, float | None]


class TokenErrors(Struct, frozen=True):
    """The errors in sequences of tokens.

    Attributes:
        tokens: Number of true tokens.
        substituted: For each model how many of them it said to be others.
        deleted: For each model how many of them it left out.
        inserted: For each model how many it said that there are not.
        whole: For each model the share of the sequences without any error.
    """

    tokens: int
    substituted: dict[str, int]
    deleted: dict[str, int]
    inserted: dict[str, int]
    whole: dict[str, float | None]


class GroupRow(Struct, frozen=True):
    """The samples of one group, such as a person or a recording.

    Attributes:
        name: Name of the group; "" where the report leaves samples out.
        samples: Number of its labelled samples.
        score: For each model its mean score over them.
    """

    name: str
    samples: int
    score: dict[str, float | None]


class GroupFigures(Struct, frozen=True):
    """The groups of samples.

    Attributes:
        count: Number of groups in all.
        rows: Those for which the score of what ships is worst, the worst first.
    """

    count: int
    rows: tuple[GroupRow, ...]


class InputPicture(Struct, frozen=True):
    """A small picture of one input, or of an answer that is a map.

    Attributes:
        name: What it shows: the modality, "true", or the name of a model.
        png: A PNG in a data URI, of at most 40 pixels; "" for a series.
        series: The channels of a series, each by at most 64 whole numbers from 0 to 100 with spaces between them.
    """

    name: str
    png: Png = ""
    series: tuple[Channel, ...] = ()


class Retrieved(Struct, frozen=True):
    """One sample that was found for another.

    Attributes:
        id: Its name.
        label: Name of its class; "" where there is none.
        cosine: Cosine to the query.
        right: Whether it is of the query's class; None where that is not known.
    """

    id: str
    label: str
    cosine: float
    right: bool | None


class SampleDetails(Struct, frozen=True):
    """One sample that is worth a look.

    Attributes:
        id: Name of the sample.
        group: Its group; "" where samples do not come in groups.
        true: What is true of it, in words; "" where that is not known.
        said: For each model what it said, in words.
        score: For each model its score; None where the truth is not known.
        figure: By what the samples of the list are ordered; :class:`OutputDetails` says what that is.
        pictures: Small pictures of its inputs and of answers that are maps, as far as there is room.
        retrieved: For each model the nearest samples, where the output is an embedding.
    """

    id: str
    group: str
    true: str
    said: dict[str, str]
    score: dict[str, float | None]
    figure: float | None
    pictures: tuple[InputPicture, ...] = ()
    retrieved: dict[str, tuple[Retrieved, ...]] = {}


class ChangedAnswers(Struct, frozen=True):
    """The samples whose answer is not the reference's any more.

    Attributes:
        count: Number of samples whose answer changed; None where an output has no decision that could change.
        mean: By how much answers changed, in the measure that orders them, mean over all samples; None where that is
            not a finite number.
        broken: How many of these what ships scores worse, as where the reference was right and it is not.
        mended: How many of these it scores better.
        alike: How many of these it scores the same, as where both are wrong.
        unknown: How many of these have no truth.
    """

    count: int | None
    mean: float | None
    broken: int
    mended: int
    alike: int
    unknown: int


class OutputDetails(Struct, frozen=True):
    """What stands behind the quality of one output of what ships, on the test samples.

    Attributes:
        kind: What the output is.
        models: The models that are compared: what ships first, then the ledger's reference, then the teacher.
        reference: The model of which what ships was made, and that it must still answer like.
        truth: What answers are held against.
        samples: Number of samples.
        labelled: Number of samples whose truth is known.
        score: What a sample's score is, in words.
        higher_is_better: Whether a higher score is better.
        worst_by: What the figure of the worst samples is, in words.
        flips_by: What the figure of the samples that changed most is, in words.
        shown: Whether samples are shown: not where the recipe leaves them out.
        mean_score: For each model its mean score over the labelled samples.
        classes: The classes or labels; None for other outputs.
        curves: For each model its precision (y) over its recall (x), over all labels that each are scored.
        numbers: The numbers; None for other outputs.
        retrieval: The retrieval of all samples, and of those of each class; empty for other outputs.
        tokens: The errors in sequences; None for other outputs.
        groups: The groups; None where samples do not come in groups, or nothing is known of their truth.
        changes: How many answers are not the reference's.
        worst: The samples that what ships does worst, the worst first.
        flips: The samples whose answer changed, those that changed most first.
    """

    kind: str
    models: tuple[str, ...]
    reference: str
    truth: Truth
    samples: int
    labelled: int
    score: str
    higher_is_better: bool
    worst_by: str
    flips_by: str
    shown: bool
    mean_score: dict[str, float | None]
    classes: ClassFigures | None
    curves: dict[str, DetailCurve]
    numbers: NumberFigures | None
    retrieval: tuple[RecallRow, ...]
    tokens: TokenErrors | None
    groups: GroupFigures | None
    changes: ChangedAnswers
    worst: tuple[SampleDetails, ...]
    flips: tuple[SampleDetails, ...]
