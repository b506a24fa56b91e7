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


_QUERIES: tl.constexpr = tl.constexpr(16)
"""Rows of the smallest product; the queries of a group are some of them."""


# In place of `tl.sum` and `tl.max`, which are kernels of Triton's own: the interpreter takes
# only ours, but knows these by name and need not go through them element by element.
_plus, _larger = tl.standard._sum_combine, tl.standard._elementwise_max
_smaller = tl.standard._elementwise_min


@triton.jit  # type: ignore[untyped-decorator]
def embed(  # type: ignore[no-untyped-def]  # pragma: no cover
    ids, positions, table, gain, stream, ready, powers, rotary, turns, width,
    BLOCK: tl.constexpr, DIM: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """One slot: its token's row of the table begins the residual stream; and its rotation."""
    if AHEAD:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    slot = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    token = tl.load(ids + slot).to(tl.int64)
    position = tl.maximum(tl.load(positions + slot), 0)
    row = tl.load(table + token * width + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(stream + slot * width + columns, row, mask=inside)
    scaled = row * tl.load(gain + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(ready + slot * width + columns, scaled.to(ready.dtype.element_ty), mask=inside)
    tl.store(powers + slot, tl.reduce(row * row, 0, _plus))
    turn = tl.arange(0, DIM)
    tl.store(turns + slot * DIM + turn, tl.load(rotary + position * DIM + turn))


@triton.jit  # type: ignore[untyped-decorator]
def _root(powers, parts, width, eps, slots, room, PARTS: tl.constexpr):  # type: ignore[no-untyped-def]  # pragma: no cover
    """One over the root of the mean square of each slot's stream, from its blocks' sums."""
    part = tl.arange(0, PARTS)
    place = powers + part[:, None] * room + slots[None, :]
    power = tl.reduce(tl.load(place, mask=(part < parts)[:, None], other=0.0), 0, _plus)
    return tl.rsqrt(power / width + eps)


@triton.jit  # type: ignore[untyped-decorator]
def _gather(  # type: ignore[no-untyped-def]  # pragma: no cover
    partial, taken, SPLITS: tl.constexpr, ROWS: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """The sum of what the programs of one block left, always in the same order."""
    place = tl.arange(0, ROWS)[:, None] * SLOTS + tl.arange(0, SLOTS)[None, :]
    total = tl.load(partial + place, mask=taken, other=0.0)
    for split in tl.static_range(1, SPLITS):
        total += tl.load(partial + split * (ROWS * SLOTS) + place, mask=taken, other=0.0)
    return total


@triton.jit  # type: ignore[untyped-decorator]
def _finish(  # type: ignore[no-untyped-def]  # pragma: no cover
    total, root, before, gains, scale, taken, block, out, stream, squares, outputs, slots, room,
    ROWS: tl.constexpr, SLOTS: tl.constexpr, KIND: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """What follows a product: the norm of its input, the activation, the sum."""
    rows = block * ROWS + tl.arange(0, ROWS)
    inside = (rows < outputs)[:, None] & taken
    place = slots[None, :] * outputs + rows[:, None]
    total *= root[None, :]
    if WHOLE:
        total *= scale[:, None]
    if KIND == GATED:
        halves = tl.reshape(total, (2, ROWS, SLOTS))
        total, other = tl.split(tl.permute(halves, (1, 2, 0)))
        total = total / (1.0 + tl.exp(-total)) * other
    if KIND == JOINED:
        total += before
        tl.store(stream + place, total, mask=inside)
        tl.store(squares + block * room + slots, tl.reduce(total * total, 0, _plus))
        total *= gains[:, None]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["parts", "used"])  # type: ignore[untyped-decorator]
def product(  # type: ignore[no-untyped-def]  # pragma: no cover
    ready, weight, scales, out, stream, gain, powers, parts, squares, partial, arrivals,
    positions, outputs, width, used, room, eps, MANY: tl.constexpr,
    SLOTS: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr, STEPS: tl.constexpr,
    SPLITS: tl.constexpr, PARTS: tl.constexpr, EVEN: tl.constexpr,
    NORMED: tl.constexpr, KIND: tl.constexpr, WHOLE: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Some outputs of a product for the slots in use, over one part of its inputs.

    The last program of a block to arrive adds the parts up and does what follows. With `WHOLE`
    the weight is held in whole numbers, with a scale for each output. With `MANY` there are more
    slots than one program takes: `SLOTS` of all `room`; those in use come first.

    The two halves of a gate are rows of one product: of 64 rows a Hopper GPU takes both factors
    from where they were copied to, of fewer it does not.
    """
    block, split = tl.program_id(0) // SPLITS, tl.program_id(0) % SPLITS
    counter, local = block, tl.arange(0, SLOTS)
    slots = local
    if MANY:
        tile_of = tl.program_id(1)
        slots += tile_of * SLOTS
        counter += tile_of * (tl.num_programs(0) // SPLITS)
        if tl.load(positions + tile_of * SLOTS) < 0:
            return
    wide: tl.constexpr = 2 * ROWS if KIND == GATED else ROWS
    row = tl.arange(0, wide)
    rows = block * ROWS + row % ROWS
    within = rows < outputs
    rows += row // ROWS * outputs
    begin, depth = split * (STEPS * DEPTH), tl.arange(0, DEPTH)
    place = weight + rows.to(tl.int64)[:, None] * width + (begin + depth)[None, :]
    inside = within[:, None]
    if AHEAD:
        tl.extra.cuda.gdc_launch_dependents()
    # The first weights are asked for at once; what they are multiplied by may not be there yet.
    tile = tl.load(place) if EVEN else tl.load(place, mask=inside, other=0.0)
    gains = tl.full((ROWS,), 1.0, tl.float32)
    if KIND == JOINED:
        gains = tl.load(gain + rows).to(tl.float32)
    scale = tl.full((wide,), 1.0, tl.float32)
    if WHOLE:
        scale = tl.load(scales + rows, mask=within, other=0.0).to(tl.float32)
    if AHEAD:
        tl.extra.cuda.gdc_wait()
    # Of a small batch most slots are not in use, and need not be read.
    taken = (slots < used)[None, :]
    heard = ready + begin + slots[None, :] * width + depth[:, None]
    given = tl.load(heard, mask=taken, other=0.0)
    # What the last program will need is asked for now: then it need not wait for it.
    before = tl.full((ROWS, SLOTS), 0.0, tl.float32)
    if KIND == JOINED:
        place_of = slots[None, :] * outputs + rows[:, None]
        before = tl.load(stream + place_of, mask=taken, other=0.0)
    root = tl.full((SLOTS,), 1.0, tl.float32)
    if NORMED:
        root = _root(powers, parts, width, eps, slots, room, PARTS)
    kind = given.dtype
    total = tl.dot(tile.to(kind), given, input_precision="ieee")
    for _ in range(1, STEPS):
        place += DEPTH
        heard += DEPTH
        given = tl.load(heard, mask=taken, other=0.0)
        tile = tl.load(place) if EVEN else tl.load(place, mask=inside, other=0.0)
        total = tl.dot(tile.to(kind), given, total, input_precision="ieee")
    if SPLITS == 1:
        _finish(
            total, root, before, gains, scale, taken, block, out, stream, squares, outputs, slots,
            room, ROWS, SLOTS, KIND, WHOLE,
        )  # fmt: skip
        return
    size: tl.constexpr = wide * SLOTS
    left = partial + counter * (SPLITS * size)
    tl.store(left + split * size + row[:, None] * SLOTS + local[None, :], total, mask=taken)
    # All of this program's parts are written before its arrival is told.
    tl.debug_barrier()
    if tl.atomic_add(arrivals + counter, 1, sem="acq_rel") == SPLITS - 1:
        tl.store(arrivals + counter, 0)
        total = _gather(left, taken, SPLITS, wide, SLOTS)
        _finish(
            total, root, before, gains, scale, taken, block, out, stream, squares, outputs, slots,
            room, ROWS, SLOTS, KIND, WHOLE,
        )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def _turned(head, gain, turn, eps, inside, DIM: tl.constexpr):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Queries or keys in rows, normed and turned by the rotation of their slot, or of each one's:
    their two halves."""
    half = tl.arange(0, DIM // 2)
    place = head[:, None] + half[None, :]
    first = tl.load(place, mask=inside[:, None], other=0.0)
    second = tl.load(place + DIM // 2, mask=inside[:, None], other=0.0)
    cosine = tl.load(turn + half[None, :])
    sine = tl.load(turn + DIM // 2 + half[None, :])
    power = tl.reduce(first * first + second * second, 1, _plus) / DIM
    root = tl.rsqrt(power + eps)[:, None]
    first *= root * tl.load(gain + half).to(tl.float32)[None, :]
    second *= root * tl.load(gain + DIM // 2 + half).to(tl.float32)[None, :]
    return first * cosine - second * sine, second * cosine + first * sine


@triton.jit  # type: ignore[untyped-decorator]
def append(  # type: ignore[no-untyped-def]  # pragma: no cover
    joined, key_gain, turns, keys, values, positions, sequences, length, eps,
    HEADS: tl.constexpr, KV: tl.constexpr, DIM: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """One slot: its keys and values go to their place in the cache."""
    if AHEAD:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    slot = tl.program_id(0)
    position = tl.load(positions + slot)
    if position >= 0:
        half, whole, head = tl.arange(0, DIM // 2), tl.arange(0, DIM), tl.arange(0, KV)
        row = joined + slot * ((HEADS + 2 * KV) * DIM) + (HEADS + head) * DIM
        first, second = _turned(row, key_gain, turns + slot * DIM, eps, head < KV, DIM)
        sequence = tl.load(sequences + slot)
        place = ((sequence * KV + head).to(tl.int64) * length + position)[:, None] * DIM
        tl.store(keys + place + half[None, :], first.to(keys.dtype.element_ty))
        tl.store(keys + place + DIM // 2 + half[None, :], second.to(keys.dtype.element_ty))
        value = tl.load(row[:, None] + KV * DIM + whole[None, :])
        tl.store(values + place + whole[None, :], value.to(values.dtype.element_ty))


@triton.jit(do_not_specialize=["splits"])  # type: ignore[untyped-decorator]
def attend(  # type: ignore[no-untyped-def]  # pragma: no cover
    joined, query_gain, key_gain, turns, keys, values, positions, sequences,
    heard, partial, arrivals, splits, length, scale, eps,
    HEADS: tl.constexpr, KV: tl.constexpr, DIM: tl.constexpr, SPLIT: tl.constexpr,
    AHEAD: tl.constexpr,
):  # fmt: skip
    """The queries that share one key head, of one slot, over one stretch of the cache.

    The slot's own key and value are appended here: no other slot of this launch belongs to the
    same sequence. The last program to arrive joins the stretches.
    """
    group: tl.constexpr = HEADS // KV
    wide: tl.constexpr = DIM + 2
    slot, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    half, whole = tl.arange(0, DIM // 2), tl.arange(0, DIM)
    begin = split * SPLIT
    columns = begin + tl.arange(0, SPLIT)
    if AHEAD:
        tl.extra.cuda.gdc_launch_dependents()
    # What earlier steps left in the cache is there already. Where this step is may not be: what
    # is read here before the wait is that or the place before, enough to tell what to ask for.
    hint = tl.load(positions + slot)
    if (hint < 0) | (hint + 1 < begin):
        return
    sequence = tl.load(sequences + slot)
    base = (sequence * KV + head).to(tl.int64) * length * DIM
    cached = base + columns[:, None] * DIM
    held = (columns < length)[:, None]
    key_first = tl.load(keys + cached + half[None, :], mask=held, other=0.0)
    key_second = tl.load(keys + cached + DIM // 2 + half[None, :], mask=held, other=0.0)
    value = tl.load(values + cached + whole[None, :], mask=held, other=0.0)
    if AHEAD:
        tl.extra.cuda.gdc_wait()
    position = tl.load(positions + slot)
    if position < begin:
        return
    row = joined + slot * ((HEADS + 2 * KV) * DIM)
    turn = turns + slot * DIM
    member = tl.arange(0, _QUERIES)
    queries = row + (head * group + member) * DIM
    first, second = _turned(queries, query_gain, turn, eps, member < group, DIM)
    lone = tl.arange(0, 1)
    new = row + (HEADS + head + lone) * DIM
    own_first, own_second = _turned(new, key_gain, turn, eps, lone < 1, DIM)
    own_first = own_first.to(keys.dtype.element_ty)
    own_second = own_second.to(keys.dtype.element_ty)
    own_value = tl.load(row + (HEADS + KV + head) * DIM + whole)[None, :]
    own_value = own_value.to(values.dtype.element_ty)
    own = (columns == position)[:, None]
    key_first = tl.where(own, own_first, key_first)
    key_second = tl.where(own, own_second, key_second)
    value = tl.where(own, own_value, value)
    tl.store(keys + cached + half[None, :], key_first, mask=own)
    tl.store(keys + cached + DIM // 2 + half[None, :], key_second, mask=own)
    tl.store(values + cached + whole[None, :], value, mask=own)
    first = (first * scale).to(keys.dtype.element_ty)
    second = (second * scale).to(keys.dtype.element_ty)
    score = tl.dot(first, tl.trans(key_first), input_precision="ieee")
    score = tl.dot(second, tl.trans(key_second), score, input_precision="ieee")
    score = tl.where((columns <= position)[None, :], score, float("-inf"))
    top = tl.reduce(score, 1, _larger)
    weight = tl.exp(score - top[:, None])
    mass = tl.reduce(weight, 1, _plus)
    made = tl.dot(weight.to(value.dtype), value, input_precision="ieee")
    left = partial + (slot * KV + head) * splits * group * wide
    into = left + (split * group + member) * wide
    tl.store(into[:, None] + whole[None, :], made, mask=(member < group)[:, None])
    tl.store(into + DIM, top, mask=member < group)
    tl.store(into + DIM + 1, mass, mask=member < group)
    tl.debug_barrier()
    expected = position // SPLIT + 1
    counter = arrivals + slot * KV + head
    if tl.atomic_add(counter, 1, sem="acq_rel") == expected - 1:
        tl.store(counter, 0)
        total = _joined_parts(left, expected, group, DIM)
        place_of = heard + slot * (HEADS * DIM) + head * group * DIM
        place_of += tl.arange(0, group)[:, None] * DIM + whole[None, :]
        tl.store(place_of, total.to(heard.dtype.element_ty))


@triton.jit  # type: ignore[untyped-decorator]
def _joined_parts(left, count, GROUP: tl.constexpr, DIM: tl.constexpr):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Attention over all stretches from that over each; in steps of one size, so that the
    order of the sum is that of the stretches alone."""
    wide: tl.constexpr = DIM + 2
    member, whole = tl.arange(0, GROUP), tl.arange(0, DIM)
    total = tl.full((GROUP, DIM), 0.0, tl.float32)
    top = tl.full((GROUP,), float("-inf"), tl.float32)
    mass = tl.full((GROUP,), 0.0, tl.float32)
    start = 0
    while start < count:
        part = start + tl.arange(0, _LAST_READ)
        place = left + (part[:, None] * GROUP + member[None, :]) * wide
        inside = (part < count)[:, None]
        tops = tl.load(place + DIM, mask=inside, other=float("-inf"))
        masses = tl.load(place + DIM + 1, mask=inside, other=0.0)
        rows = tl.load(place[:, :, None] + whole[None, None, :], mask=inside[:, :, None], other=0.0)
        higher = tl.maximum(top, tl.reduce(tops, 0, _larger))
        weights, before = tl.exp(tops - higher[None, :]), tl.exp(top - higher)
        mass = mass * before + tl.reduce(weights * masses, 0, _plus)
        total = total * before[:, None] + tl.reduce(weights[:, :, None] * rows, 0, _plus)
        top = higher
        start += _LAST_READ
    return total / mass[:, None]


@triton.jit(do_not_specialize=["length"])  # type: ignore[untyped-decorator]
def read(  # type: ignore[no-untyped-def]  # pragma: no cover
    joined, query_gain, turns, keys, values, positions, sequences, heard, length, scale, eps,
    HEADS: tl.constexpr, KV: tl.constexpr, DIM: tl.constexpr, SPLIT: tl.constexpr,
    TILE: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """The queries that share one key head, of several slots, over all that their sequences hold.

    Keys and values of these slots are in the cache already. The slots are sorted by sequence.
    A row that sees nothing of a stretch is left as it was, to the last bit.
    """
    group: tl.constexpr = HEADS // KV
    row, head = tl.arange(0, TILE * group), tl.program_id(1)
    slot = tl.program_id(0) * TILE + row // group
    half, whole, column = tl.arange(0, DIM // 2), tl.arange(0, DIM), tl.arange(0, SPLIT)
    if AHEAD:
        tl.extra.cuda.gdc_launch_dependents()
    # What is where was told before the first launch of all.
    position, sequence = tl.load(positions + slot), tl.load(sequences + slot)
    last = tl.reduce(tl.where(position >= 0, sequence, -1), 0, _larger)
    if last < 0:
        return
    current = tl.reduce(tl.where(position >= 0, sequence, last), 0, _smaller)
    if AHEAD:
        tl.extra.cuda.gdc_wait()
    queries = joined + slot * ((HEADS + 2 * KV) * DIM) + (head * group + row % group) * DIM
    turn = turns + slot[:, None] * DIM
    first, second = _turned(queries, query_gain, turn, eps, position >= 0, DIM)
    first = (first * scale).to(keys.dtype.element_ty)
    second = (second * scale).to(keys.dtype.element_ty)
    total = tl.full((TILE * group, DIM), 0.0, tl.float32)
    top = tl.full((TILE * group,), float("-inf"), tl.float32)
    mass = tl.full((TILE * group,), 0.0, tl.float32)
    while current <= last:
        own = (sequence == current) & (position >= 0)
        reach = tl.reduce(tl.where(own, position, -1), 0, _larger)
        base = (current * KV + head).to(tl.int64) * length * DIM
        begin = 0
        while begin <= reach:
            columns = begin + column
            cached = base + columns[:, None] * DIM
            held = (columns < length)[:, None]
            key_first = tl.load(keys + cached + half[None, :], mask=held, other=0.0)
            key_second = tl.load(keys + cached + DIM // 2 + half[None, :], mask=held, other=0.0)
            value = tl.load(values + cached + whole[None, :], mask=held, other=0.0)
            score = tl.dot(first, tl.trans(key_first), input_precision="ieee")
            score = tl.dot(second, tl.trans(key_second), score, input_precision="ieee")
            seen = own[:, None] & (columns[None, :] <= position[:, None])
            score = tl.where(seen, score, float("-inf"))
            higher = tl.maximum(top, tl.reduce(score, 1, _larger))
            # A row that has seen nothing yet has no score to count from.
            lower = tl.where(higher == float("-inf"), 0.0, higher)
            weight, before = tl.exp(score - lower[:, None]), tl.exp(top - lower)
            mass = mass * before + tl.reduce(weight, 1, _plus)
            made = tl.dot(weight.to(value.dtype), value, input_precision="ieee")
            total = total * before[:, None] + made
            top = higher
            begin += SPLIT
        current += 1
    total = total / tl.where(mass == 0.0, 1.0, mass)[:, None]
    place = heard + slot * (HEADS * DIM) + (head * group + row % group) * DIM
    place = place[:, None] + whole[None, :]
    tl.store(place, total.to(heard.dtype.element_ty), mask=(position >= 0)[:, None])
