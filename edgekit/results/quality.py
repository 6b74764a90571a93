"""How good a model is at its task, on data that it never saw."""

from __future__ import annotations

from pydantic import Field

from edgekit.results.base import Interval, Result
from edgekit.results.headline import Headline


class Quality(Result):
    """How well a model does the task on labelled text it never saw."""

    accuracy: float
    """Share of rows with the right label, 0 to 1."""
    accuracy_interval: Interval
    """Wilson score interval of the accuracy."""
    cross_entropy: float
    """Mean negative log likelihood of the right label, nats a row."""
    rows: int
    """Labelled rows evaluated."""
    split: str = "test"
    """Name of the data split; of several, joined by ` + `."""
    teacher_agreement: float | None = None
    """Share of rows on which the teacher gives the same label, 0 to 1; None without a teacher."""
    accuracy_change: float | None = None
    """Accuracy less the teacher's, on the same rows; None without a teacher."""
    accuracy_change_interval: Interval | None = None
    """Interval of `accuracy_change`, by Newcombe's method for paired shares; None without a teacher."""
    per_label_recall: dict[str, float] = {}
    """Label to the share of its rows that were found, 0 to 1."""
    per_label_recall_intervals: dict[str, Interval] = {}
    """Label to the Wilson score interval of its recall."""
    parts: dict[str, Quality] = {}
    """Split to the quality on it alone, where there are several."""
    model_digest: str = ""
    """Digest of the model that was judged."""

    @property
    def headline(self) -> Headline:
        """Returns the accuracy and its difference from the teacher's."""
        return Headline(
            metric="accuracy",
            value=self.accuracy,
            interval=self.accuracy_interval,
            change_name="accuracy_change",
            change=self.accuracy_change,
            change_interval=self.accuracy_change_interval,
            amount=self.rows,
            unit="rows",
        )


class MultipleChoiceQuality(Result):
    """How often a language model holds the right one of several answers likeliest, for its length."""

    accuracy: float = Field(ge=0, le=1)
    """Share of questions answered rightly, 0 to 1."""
    accuracy_interval: Interval
    """Wilson score interval of the accuracy."""
    questions: int
    """Questions answered."""
    chance: float
    """The accuracy of blind guesses, 0 to 1."""
    teacher_accuracy: float | None = None
    """The teacher's accuracy on the same questions; None without a teacher."""
    accuracy_change: float | None = None
    """Accuracy less the teacher's; None without a teacher."""
    accuracy_change_interval: Interval | None = None
    """Interval of `accuracy_change`, by Newcombe's method for paired shares; None without a teacher."""
    source_digest: str = ""
    """SHA-256 of the file that the questions are from."""


class Exchange(Result):
    """A prompt and what a model answered."""

    prompt: str
    """The last turn before the answer."""
    answer: str
    """What the model said, its likeliest token each time; cut after so many tokens."""
    expected: str
    """The answer in the data."""
    ended: bool
    """True where the model ended it by itself."""


class AnswersQuality(Result):
    """Whether a language model answers at all, which no perplexity shows."""

    prompts: int
    """Prompts asked."""
    answered: float = Field(ge=0, le=1)
    """Share of them with an answer of more than white space, 0 to 1."""
    answered_interval: Interval
    """Wilson score interval of `answered`."""
    ended: float = Field(ge=0, le=1)
    """Share of the answers that the model ended by itself within `max_tokens`, 0 to 1."""
    repetition: float = Field(ge=0, le=1)
    """Mean share of 4-grams of tokens that stood in the same answer before (seq-rep-4), 0 to 1."""
    max_tokens: int
    """Tokens after which an answer was cut."""
    examples: list[Exchange] = []
    """The first few."""


class LanguageQuality(Result):
    """How well a language model predicts text that it never saw, and how near it is to its teacher."""

    perplexity: float
    """exp of the mean negative log likelihood of a token."""
    perplexity_interval: Interval
    """Bootstrap interval, documents drawn whole."""
    cross_entropy: float
    """Mean negative log likelihood, nats a token."""
    accuracy: float
    """Share of tokens that the model holds most likely, 0 to 1."""
    tokens: int
    """Tokens predicted."""
    documents: int
    """Texts that they are of."""
    split: str = "test"
    """Name of the data split; of several, joined by ` + `."""
    perplexity_ratio: float | None = None
    """Perplexity over the teacher's on the same tokens; None without a teacher."""
    perplexity_ratio_interval: Interval | None = None
    """Paired bootstrap interval of `perplexity_ratio`, documents drawn whole; None without a teacher."""
    divergence: float | None = None
    """Mean KL(teacher || model), nats a token; None without a teacher."""
    divergence_p99: float | None = None
    """99th percentile over tokens of the same; None without a teacher."""
    teacher_agreement: float | None = None
    """Share of tokens for which both hold the same token most likely, 0 to 1; None without a teacher."""
    multiple_choice: MultipleChoiceQuality | None = None
    """Answers to questions; None where none were asked."""
    answers: AnswersQuality | None = None
    """Answers to the prompts of conversations; None where none were asked."""
    parts: dict[str, LanguageQuality] = {}
    """Split to the quality on it alone, where there are several."""
    model_digest: str = ""
    """Digest of the model that was judged."""

    @property
    def headline(self) -> Headline:
        """Returns the perplexity and its ratio to the teacher's."""
        return Headline(
            metric="perplexity",
            value=self.perplexity,
            interval=self.perplexity_interval,
            change_name="perplexity_ratio",
            change=self.perplexity_ratio,
            change_interval=self.perplexity_ratio_interval,
            amount=self.tokens,
            unit="tokens",
            divergence=self.divergence,
        )


AnyQuality = Quality | LanguageQuality
