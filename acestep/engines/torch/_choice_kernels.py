"""How the next token is drawn from a language model's scores, as two Triton kernels.

The first makes scores of the products (guidance, the grammar's mask, temperature) and keeps
each stretch's best. The second finds the best of all. With `top_p` it asks whether the token
drawn from all of them is among those that count; as a rule it is, and one pass over the scores
tells. Otherwise it draws again among the larger scores, which all that count are: what
transformers gets by sorting. The noise is that of `acestep.lm.sampling.gumbel`, bit for bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Kernels are compiled, or rewritten to be interpreted: coverage cannot see their lines run.

STRETCH = 2048
"""Scores that one program makes."""

_MASK_BITS: tl.constexpr = tl.constexpr(32)


# In place of `tl.sum`, `tl.max` and `tl.min`; see `_language_kernels`.
_plus = tl.standard._sum_combine
_larger, _smaller = tl.standard._elementwise_max, tl.standard._elementwise_min


@triton.jit
def _mixed(value):  # type: ignore[no-untyped-def]  # pragma: no cover
    """`sampling._mix` in numbers of 32 bits, whose products wrap by themselves."""
    for _ in tl.static_range(2):
        value = (value ^ (value >> 16)) * 0x45D9F3B
    return value ^ (value >> 16)


@triton.jit
def _noise(seed, step, columns):  # type: ignore[no-untyped-def]  # pragma: no cover
    start = _mixed(seed.to(tl.uint32) + _mixed((step + 1).to(tl.uint32)))
    bits = _mixed(start + columns.to(tl.uint32) * 0x27D4EB2F)
    uniform = ((bits >> 9).to(tl.float32) + 0.5) / 8388608.0
    return -tl.log(-tl.log(uniform))


@triton.jit
def _best(value, columns, width):  # type: ignore[no-untyped-def]  # pragma: no cover
    """The largest value and the first column that holds it."""
    top = tl.reduce(value, 0, _larger)
    return top, tl.reduce(tl.where(value == top, columns, width), 0, _smaller)


@triton.jit(do_not_specialize=["words", "batch"])  # type: ignore[untyped-decorator]
def score(  # type: ignore[no-untyped-def]  # pragma: no cover
    logits, masks, words, seeds, steps, scores, tops, masses, bests, places,
    width, batch, guidance, temperature,
    GUIDED: tl.constexpr, MASKED: tl.constexpr, GREEDY: tl.constexpr,
    BLOCK: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """One stretch of one item's scores, their best, and their mass."""
    if AHEAD:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    item, block = tl.program_id(0), tl.program_id(1)
    columns = block * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    value = tl.load(logits + item * width + columns, mask=inside, other=float("-inf"))
    if GUIDED:
        other = tl.load(logits + (batch + item) * width + columns, mask=inside, other=0.0)
        value = other + guidance * (value - other)
    if MASKED:
        word = tl.load(masks + item * words + columns // _MASK_BITS, mask=inside, other=0)
        inside = inside & (((word >> (columns % _MASK_BITS)) & 1) == 1)
    if not GREEDY:
        value = value / temperature
    value = tl.where(inside, value, float("-inf"))
    tl.store(scores + item * width + columns, value, mask=columns < width)
    top = tl.reduce(value, 0, _larger)
    at = item * tl.num_programs(1) + block
    noisy = value
    if not GREEDY:
        noisy += _noise(tl.load(seeds + item), tl.load(steps + item), columns)
        # A stretch of which nothing is allowed has no mass, and no number either.
        lower = tl.where(top == float("-inf"), 0.0, top)
        tl.store(masses + at, tl.reduce(tl.exp(value - lower), 0, _plus))
        tl.store(tops + at, top)
    best, place = _best(noisy, columns, width)
    tl.store(bests + at, best)
    tl.store(places + at, place)


@triton.jit  # type: ignore[untyped-decorator]
def _above(scores, top, least, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Mass of the scores that are larger than one of them."""
    columns = tl.arange(0, BLOCK)
    mass = tl.full((BLOCK,), 0.0, tl.float32)
    start = 0
    while start < width:
        value = tl.load(scores + start + columns, mask=start + columns < width, other=float("-inf"))
        mass += tl.where(value > least, tl.exp(value - top), 0.0)
        start += BLOCK
    return tl.reduce(mass, 0, _plus)


@triton.jit  # type: ignore[untyped-decorator]
def _drawn(scores, least, seed, step, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # pragma: no cover
    """The token drawn among those whose scores are larger than one of them."""
    best, place, start = float("-inf"), width, 0
    while start < width:
        columns = start + tl.arange(0, BLOCK)
        value = tl.load(scores + columns, mask=columns < width, other=float("-inf"))
        noisy = tl.where(value > least, value + _noise(seed, step, columns), float("-inf"))
        here, at = _best(noisy, columns, width)
        place = tl.where(here > best, at, place)
        best = tl.maximum(best, here)
        start += BLOCK
    return place


@triton.jit(do_not_specialize=["batch", "blocks", "room", "first_id"])  # type: ignore[untyped-decorator]
def pick(  # type: ignore[no-untyped-def]  # pragma: no cover
    scores, tops, masses, bests, places, seeds, steps, positions, chosen, made, ids,
    width, batch, blocks, room, first_id, top_p,
    GUIDED: tl.constexpr, NUCLEUS: tl.constexpr, KEEP: tl.constexpr,
    BLOCKS: tl.constexpr, BLOCK: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """One item's token: found, noted, and handed to the next step for all its rows."""
    if AHEAD:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    item = tl.program_id(0)
    block = tl.arange(0, BLOCKS)
    inside, at = block < blocks, item * blocks + block
    best = tl.load(bests + at, mask=inside, other=float("-inf"))
    place = tl.load(places + at, mask=inside, other=width)
    choice = tl.reduce(tl.where(best == tl.reduce(best, 0, _larger), place, width), 0, _smaller)
    step = tl.load(steps + item)
    if NUCLEUS:
        own = scores + item * width
        stretch = tl.load(tops + at, mask=inside, other=float("-inf"))
        top = tl.reduce(stretch, 0, _larger)
        mass = tl.load(masses + at, mask=inside, other=0.0) * tl.exp(stretch - top)
        enough = tl.reduce(mass, 0, _plus) * top_p
        least = tl.load(own + choice)
        before = _above(own, top, least, width, BLOCK)
        # What counts has larger scores than a token that does not: draw among those, until one
        # counts. The first of all always does.
        while (before >= enough) & (least < top):
            choice = _drawn(own, least, tl.load(seeds + item), step, width, BLOCK)
            least = tl.load(own + choice)
            before = _above(own, top, least, width, BLOCK)
    tl.store(chosen + item, choice.to(tl.int64))
    if KEEP:
        tl.store(made + item * room + step, choice.to(tl.int64))
    tl.store(steps + item, step + 1)
    tl.store(ids + item, choice + first_id)
    tl.store(positions + item, tl.load(positions + item) + 1)
    if GUIDED:
        tl.store(ids + batch + item, choice + first_id)
        tl.store(positions + batch + item, tl.load(positions + batch + item) + 1)
