"""How the language model is to write a text: the options that every use of it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from acestep.lm.sampling import Sampling


class WritingOptions(TypedDict, total=False):
    """Options of the uses of the language model that write a description.

    Attributes:
        temperature: 0 always takes the most probable token.
        top_k: most tokens to choose from; 0 or None for no limit.
        top_p: probability that the tokens to choose from must reach; None or 1 for all.
        repetition_penalty: above 1 discourages tokens that occurred before.
        use_constrained_decoding: hold the text to the grammar.
        seed: the same seed gives the same text.
        progress: called as `progress(fraction, desc=text)`.
    """

    temperature: float
    top_k: int | None
    top_p: float | None
    repetition_penalty: float
    use_constrained_decoding: bool
    seed: int
    progress: Any


def sampling_of(options: WritingOptions, temperature: float) -> Sampling:
    """The sampling that options ask for, at a temperature unless they name one.

    Raises:
        TypeError: an option that there is not.
    """
    from acestep.lm.sampling import Sampling

    if unknown := sorted(options.keys() - WritingOptions.__annotations__.keys()):
        raise TypeError(f"unknown option '{unknown[0]}'")
    return Sampling(
        options.get("temperature", temperature),
        options.get("top_k"),
        options.get("top_p"),
        options.get("repetition_penalty", 1.0),
    )
