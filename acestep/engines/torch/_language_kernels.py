"""The step of a language model over a few tokens at once, as Triton kernels.

A token of such a model reads every weight once, and all else is small: what counts is that the
memory is never idle. So a layer is five launches, each of which asks for its first weights
before it waits for the launch in front of it, where the GPU allows that. A *slot* is one token
of one sequence; what is computed for it does not depend on the other slots, to the last bit,
nor on how many there are. Sums run in float32 and in a fixed order; so do the residual stream
and attention.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Kernels are compiled, or rewritten to be interpreted: coverage cannot see their lines run.

PLAIN: tl.constexpr = tl.constexpr(0)
"""A product that leaves float32."""

GATED: tl.constexpr = tl.constexpr(1)
"""Two products over the same input, the activation of the first times the second."""

JOINED: tl.constexpr = tl.constexpr(2)
"""A product that is added to the residual stream, and made ready for the norm that follows."""

_LAST_READ: tl.constexpr = tl.constexpr(16)
"""Parts of the attention that are joined at once."""


# In place of `tl.sum` and `tl.max`, which are kernels of Triton's own: the interpreter takes
# only ours.
@triton.jit
def _plus(left, right):  # type: ignore[no-untyped-def]  # pragma: no cover
    return left + right


@triton.jit
def _larger(left, right):  # type: ignore[no-untyped-def]  # pragma: no cover
    return tl.maximum(left, right)


@triton.jit  # type: ignore[untyped-decorator]
def embed(  # type: ignore[no-untyped-def]  # pragma: no cover
    ids, table, gain, stream, ready, powers, WIDTH,
    SLOTS: tl.constexpr, BLOCK: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """One slot: its token's row of the table begins the residual stream."""
    if AHEAD:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    slot = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    token = tl.load(ids + slot).to(tl.int64)
    row = tl.load(table + token * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(stream + slot * WIDTH + columns, row, mask=inside)
    scaled = row * tl.load(gain + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(ready + slot * WIDTH + columns, scaled.to(ready.dtype.element_ty), mask=inside)
    tl.store(powers + slot, tl.reduce(row * row, 0, _plus))


@triton.jit
def _root(powers, parts, width, eps, SLOTS: tl.constexpr, PARTS: tl.constexpr):  # type: ignore[no-untyped-def]  # pragma: no cover
    """One over the root of the mean square of each slot's stream, from its blocks' sums."""
    part, slots = tl.arange(0, PARTS), tl.arange(0, SLOTS)
    place = powers + part[:, None] * SLOTS + slots[None, :]
    power = tl.reduce(tl.load(place, mask=(part < parts)[:, None], other=0.0), 0, _plus)
    return tl.rsqrt(power / width + eps)


@triton.jit
def _gather(partial, SPLITS: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr, SLOTS: tl.constexpr):  # type: ignore[no-untyped-def]  # pragma: no cover
    """The sum of what the programs of one block left, always in the same order."""
    place = tl.arange(0, ROWS)[:, None] * SLOTS + tl.arange(0, SLOTS)[None, :]
    total = tl.load(partial + place)
    for split in tl.static_range(1, SPLITS):
        total += tl.load(partial + split * SIZE + place)
    return total


@triton.jit
def _finish(  # type: ignore[no-untyped-def]  # pragma: no cover
    total, other, block, out, stream, gain, powers, parts, squares, outputs, width, eps,
    SLOTS: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr,
    NORMED: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """What follows a product: the norm of its input, the activation, the sum."""
    rows, slots = block * ROWS + tl.arange(0, ROWS), tl.arange(0, SLOTS)
    inside = (rows < outputs)[:, None]
    place = slots[None, :] * outputs + rows[:, None]
    if NORMED:
        root = _root(powers, parts, width, eps, SLOTS, PARTS)[None, :]
        total *= root
        if KIND == GATED:
            other *= root
    if KIND == GATED:
        total = total / (1.0 + tl.exp(-total)) * other
    if KIND == JOINED:
        total += tl.load(stream + place, mask=inside, other=0.0)
        tl.store(stream + place, total, mask=inside)
        tl.store(squares + block * SLOTS + slots, tl.reduce(total * total, 0, _plus))
        total *= tl.load(gain + rows, mask=rows < outputs, other=0.0).to(tl.float32)[:, None]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["parts"])  # type: ignore[untyped-decorator]
def product(  # type: ignore[no-untyped-def]  # pragma: no cover
    ready, weight, out, stream, gain, powers, parts, squares, partial, arrivals,
    outputs, width, eps,
    SLOTS: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr, STEPS: tl.constexpr,
    SPLITS: tl.constexpr, PARTS: tl.constexpr, EVEN: tl.constexpr,
    NORMED: tl.constexpr, KIND: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Some outputs of a product for all slots, over one part of its inputs.

    The last program of a block to arrive adds the parts up and does what follows.
    """
    block, split = tl.program_id(0) // SPLITS, tl.program_id(0) % SPLITS
    rows, slots = block * ROWS + tl.arange(0, ROWS), tl.arange(0, SLOTS)
    depth = split * (STEPS * DEPTH) + tl.arange(0, DEPTH)
    place = weight + rows.to(tl.int64)[:, None] * width + depth[None, :]
    inside = (rows < outputs)[:, None]
    beyond = outputs.to(tl.int64) * width
    if AHEAD:
        tl.extra.cuda.gdc_launch_dependents()
    # Weights are there already, what they are multiplied by is not.
    if EVEN:
        tile = tl.load(place)
    else:
        tile = tl.load(place, mask=inside, other=0.0)
    if KIND == GATED:
        second = tl.load(place + beyond)
    if AHEAD:
        tl.extra.cuda.gdc_wait()
    heard = ready + slots[None, :] * width + depth[:, None]
    given = tl.load(heard)
    total = tl.dot(tile, given, input_precision="ieee")
    other = total
    if KIND == GATED:
        other = tl.dot(second, given, input_precision="ieee")
    for _ in range(1, STEPS):
        place += DEPTH
        heard += DEPTH
        given = tl.load(heard)
        if EVEN:
            tile = tl.load(place)
        else:
            tile = tl.load(place, mask=inside, other=0.0)
        total = tl.dot(tile, given, total, input_precision="ieee")
        if KIND == GATED:
            other = tl.dot(tl.load(place + beyond), given, other, input_precision="ieee")
    if SPLITS == 1:
        _finish(
            total, other, block, out, stream, gain, powers, parts, squares, outputs, width, eps,
            SLOTS, ROWS, PARTS, NORMED, KIND,
        )  # fmt: skip
        return
    halves: tl.constexpr = 2 if KIND == GATED else 1
    size: tl.constexpr = ROWS * SLOTS * halves
    left = partial + block * (SPLITS * size)
    own = left + split * size + tl.arange(0, ROWS)[:, None] * SLOTS + slots[None, :]
    tl.store(own, total)
    if KIND == GATED:
        tl.store(own + ROWS * SLOTS, other)
    # All of this program's parts are written before its arrival is told.
    tl.debug_barrier()
    if tl.atomic_add(arrivals + block, 1, sem="acq_rel") == SPLITS - 1:
        tl.store(arrivals + block, 0)
        total = _gather(left, SPLITS, size, ROWS, SLOTS)
        if KIND == GATED:
            other = _gather(left + ROWS * SLOTS, SPLITS, size, ROWS, SLOTS)
        _finish(
            total, other, block, out, stream, gain, powers, parts, squares, outputs, width, eps,
            SLOTS, ROWS, PARTS, NORMED, KIND,
        )  # fmt: skip


@triton.jit
def _turned(head, gain, table, position, eps, DIM: tl.constexpr):  # type: ignore[no-untyped-def]  # pragma: no cover
    """A query or key, normed and turned by its position: its two halves."""
    half = tl.arange(0, DIM // 2)
    first, second = tl.load(head + half), tl.load(head + DIM // 2 + half)
    power = tl.reduce(first * first + second * second, 0, _plus) / DIM
    root = tl.rsqrt(power + eps)
    first *= root * tl.load(gain + half).to(tl.float32)
    second *= root * tl.load(gain + DIM // 2 + half).to(tl.float32)
    cosine = tl.load(table + position * DIM + half)
    sine = tl.load(table + position * DIM + DIM // 2 + half)
    return first * cosine - second * sine, second * cosine + first * sine


@triton.jit  # type: ignore[untyped-decorator]
def append(  # type: ignore[no-untyped-def]  # pragma: no cover
    joined, key_gain, table, keys, values, positions, sequences, length, eps,
    HEADS: tl.constexpr, KV: tl.constexpr, DIM: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """One head of one slot: its key and value go to their place in the cache."""
    if AHEAD:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    slot, head = tl.program_id(0), tl.program_id(1)
    position = tl.load(positions + slot)
    if position >= 0:
        half, whole = tl.arange(0, DIM // 2), tl.arange(0, DIM)
        row = joined + slot * ((HEADS + 2 * KV) * DIM)
        first, second = _turned(row + (HEADS + head) * DIM, key_gain, table, position, eps, DIM)
        sequence = tl.load(sequences + slot)
        place = ((sequence * KV + head).to(tl.int64) * length + position) * DIM
        tl.store(keys + place + half, first.to(keys.dtype.element_ty))
        tl.store(keys + place + DIM // 2 + half, second.to(keys.dtype.element_ty))
        value = tl.load(row + (HEADS + KV + head) * DIM + whole)
        tl.store(values + place + whole, value.to(values.dtype.element_ty))


@triton.jit(do_not_specialize=["splits"])  # type: ignore[untyped-decorator]
def attend(  # type: ignore[no-untyped-def]  # pragma: no cover
    joined, query_gain, key_gain, table, keys, values, positions, sequences,
    heard, partial, arrivals, splits, length, scale, eps,
    HEADS: tl.constexpr, KV: tl.constexpr, DIM: tl.constexpr, SPLIT: tl.constexpr,
    OWN: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """The queries that share one key head, of one slot, over one stretch of the cache.

    With `OWN` the slot's own key and value are appended here: right as long as no other slot
    of this launch belongs to the same sequence. The last program to arrive joins the stretches.
    """
    GROUP: tl.constexpr = HEADS // KV
    ROW: tl.constexpr = DIM + 2
    slot, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    half, whole = tl.arange(0, DIM // 2), tl.arange(0, DIM)
    if AHEAD:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    position = tl.load(positions + slot)
    begin = split * SPLIT
    if position < begin:
        return
    columns = begin + tl.arange(0, SPLIT)
    row = joined + slot * ((HEADS + 2 * KV) * DIM)
    sequence = tl.load(sequences + slot)
    base = (sequence * KV + head).to(tl.int64) * length * DIM
    cached = columns[:, None] * DIM
    if OWN:
        old = (columns < position)[:, None]
    else:
        old = (columns <= position)[:, None]
    key_first = tl.load(keys + base + cached + half[None, :], mask=old, other=0.0)
    key_second = tl.load(keys + base + cached + DIM // 2 + half[None, :], mask=old, other=0.0)
    value = tl.load(values + base + cached + whole[None, :], mask=old, other=0.0)
    if OWN:
        if position < begin + SPLIT:
            first, second = _turned(row + (HEADS + head) * DIM, key_gain, table, position, eps, DIM)
            first, second = first.to(keys.dtype.element_ty), second.to(keys.dtype.element_ty)
            new = tl.load(row + (HEADS + KV + head) * DIM + whole).to(values.dtype.element_ty)
            place = base + position * DIM
            tl.store(keys + place + half, first)
            tl.store(keys + place + DIM // 2 + half, second)
            tl.store(values + place + whole, new)
            own = (columns == position)[:, None]
            key_first = tl.where(own, first[None, :], key_first)
            key_second = tl.where(own, second[None, :], key_second)
            value = tl.where(own, new[None, :], value)
    seen = columns <= position
    key_first, key_second = key_first.to(tl.float32), key_second.to(tl.float32)
    value = value.to(tl.float32)
    left = partial + (slot * KV + head) * splits * GROUP * ROW
    for member in tl.static_range(GROUP):
        query = row + (head * GROUP + member) * DIM
        first, second = _turned(query, query_gain, table, position, eps, DIM)
        first, second = first * scale, second * scale
        score = tl.reduce(key_first * first[None, :] + key_second * second[None, :], 1, _plus)
        score = tl.where(seen, score, float("-inf"))
        top = tl.reduce(score, 0, _larger)
        weight = tl.exp(score - top)
        into = left + (split * GROUP + member) * ROW
        tl.store(into + whole, tl.reduce(weight[:, None] * value, 0, _plus))
        tl.store(into + DIM, top)
        tl.store(into + DIM + 1, tl.reduce(weight, 0, _plus))
    tl.debug_barrier()
    expected = position // SPLIT + 1
    counter = arrivals + slot * KV + head
    if tl.atomic_add(counter, 1, sem="acq_rel") == expected - 1:
        tl.store(counter, 0)
        for member in tl.static_range(GROUP):
            place_of = heard + slot * (HEADS * DIM) + (head * GROUP + member) * DIM + whole
            made = _joined_parts(left + member * ROW, expected, GROUP * ROW, DIM)
            tl.store(place_of, made.to(heard.dtype.element_ty))


@triton.jit
def _joined_parts(left, count, stride, DIM: tl.constexpr):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Attention over all stretches from that over each; in steps of one size, so that the
    order of the sum is that of the stretches alone."""
    whole = tl.arange(0, DIM)
    total = tl.full((DIM,), 0.0, tl.float32)
    top, mass = float("-inf"), 0.0
    start = 0
    while start < count:
        part = start + tl.arange(0, _LAST_READ)
        inside = part < count
        tops = tl.load(left + part * stride + DIM, mask=inside, other=float("-inf"))
        masses = tl.load(left + part * stride + DIM + 1, mask=inside, other=0.0)
        rows = tl.load(
            left + part[:, None] * stride + whole[None, :], mask=inside[:, None], other=0.0
        )
        higher = tl.maximum(top, tl.reduce(tops, 0, _larger))
        weights = tl.exp(tops - higher)
        before = tl.exp(top - higher)
        mass = mass * before + tl.reduce(weights * masses, 0, _plus)
        total = total * before + tl.reduce(weights[:, None] * rows, 0, _plus)
        top = higher
        start += _LAST_READ
    return total / mass
