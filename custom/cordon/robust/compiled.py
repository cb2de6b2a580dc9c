"""The kernels of ``kernels`` for large inputs: vector code that LLVM (``llvmlite``) makes for the processor at hand.

Speed comes from three things that no loop over arrays gives. The values of all rows stay in vector registers from load
to result; rows are copied piece by piece to a block that stays in the second-level cache; and while a block is worked
on, the next one is asked for from memory. One lane is one coordinate.

Code is made once per process and shape (a tenth of a second for 20 rows) and never kept on disk: cached machine code
would be code that no measurement of the image covers. Rows are contiguous, of one dtype, float32 or float64.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numpy.typing import NDArray

from cordon.robust import kernels
from cordon.robust.emit import COLUMNS, F64, I32, I64, POINTER, Emitter
from cordon.robust.kernels import Array, Floats, network

TILE = 4  # rows by rows whose squared differences are summed at once: 16 sums in registers
STRIP = 512  # columns of a tile's pass: all rows of a strip stay in the first-level cache
BLOCK_BYTES = 320 * 1024  # of a block: it and the next one fit a second-level cache of 1 MiB

_lock = threading.Lock()
_engines: list[Any] = []  # compiled code lives as long as its engine


def squared_distances(rows: Sequence[Array]) -> Floats:
    """(n, n) squared Euclidean distances, by differences: nothing cancels. Each strip is summed in the rows' precision.

    Not finite where a row is not, or where a square overflows the rows' precision.
    """
    n, size = len(rows), -(-len(rows) // TILE) * TILE
    table, width, block = _prepare(rows, size)
    sums = np.zeros((size, size, _lanes(rows[0].dtype)))
    _squares(size, rows[0].dtype)(table.ctypes.data, n, rows[0].size, width, block.ctypes.data, sums.ctypes.data)
    upper = np.triu(sums.sum(axis=2)[:n, :n], 1)
    return np.asarray(upper + upper.T)


def weighted_sum(rows: Sequence[Array], coefficients: Floats, mass: float, out: Array) -> bool:
    """As ``kernels.weighted_sum``, to the last bit."""
    d, width = rows[0].size, STRIP * 4
    whole = d // COLUMNS * COLUMNS
    addresses = np.array([row.ctypes.data for row in [*rows, rows[0]]], dtype=np.int64)
    coefficients, sums = np.ascontiguousarray(coefficients), np.empty(width)
    bad = _weighted_sum(rows[0].dtype)(
        addresses.ctypes.data,
        len(rows),
        whole,
        width,
        coefficients.ctypes.data,
        mass,
        sums.ctypes.data,
        out.ctypes.data,
    )
    rest = slice(whole, d)
    return not bad and (whole == d or kernels.weighted_sum([row[rest] for row in rows], coefficients, mass, out[rest]))


def trimmed(rows: Sequence[Array], f: int, weights: Floats | None, out: Array, kept: NDArray[np.int64]) -> bool:
    """As ``kernels.trimmed``, to the last bit."""
    k, d = len(rows), rows[0].size
    table, width, block = _prepare(rows, k)
    result, counts = np.empty(width, dtype=rows[0].dtype), np.zeros((k, _lanes(rows[0].dtype)), dtype=np.int32)
    order = np.arange(k) if weights is None else np.argsort(weights, kind="stable")
    sorted_weights = np.ones(k) if weights is None else np.ascontiguousarray(weights[order])
    bad = _trimmed(k, f, weights is not None, rows[0].dtype)(
        table.ctypes.data, k, d, width, block.ctypes.data, order.ctypes.data, sorted_weights.ctypes.data,
        counts.ctypes.data, result.ctypes.data, out.ctypes.data,
    )  # fmt: skip
    kept += counts.sum(axis=1) - (-d % COLUMNS)  # columns past the end are zero, so every row was kept there
    return not bad


# -- code ------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def _trimmed(k: int, f: int, weighted: bool, dtype: np.dtype[Any]) -> Callable[..., int]:
    def body(e: Emitter, arguments: Sequence[Any]) -> Any:
        table, _, d, width, block, order, weights, counts, result, out = arguments
        poison = e.variable(e.vector)
        with e.blocks(table, I64(k), d, width, block) as (start, used, columns):
            with e.loop(columns, e.lanes) as column:
                for index in range(k):
                    e.prefetch(table, I64(index), e.sum(start, width, column))

                def load(row: Any) -> Any:
                    return e.load(block, e.sum(e.b.mul(row, width), column))

                wires = [load(I64(index)) for index in range(k)]
                e.add_poison(poison, wires)
                for low, high in network(k, f).tolist():
                    wires[low], wires[high] = e.minimum(wires[low], wires[high]), e.maximum(wires[low], wires[high])
                middle = wires[f : k - f]
                lowest = highest = middle[0]
                for value in middle[1:]:
                    lowest, highest = e.minimum(lowest, value), e.maximum(highest, value)
                for index in range(k):
                    value = load(I64(index))
                    e.count(counts, index, e.b.and_(e.compare(">=", value, lowest), e.compare("<=", value, highest)))
                if weighted:
                    mean = _weighted_middle(e, load, (k, f), (order, weights), (lowest, highest))
                else:
                    total = e.wide_constant(0.0)
                    for value in middle:
                        total = e.b.fadd(total, e.widen(value))
                    mean = e.b.fdiv(total, e.wide_constant(float(len(middle))))
                e.store(result, column, e.narrow(e.b.fadd(mean, e.wide_constant(0.0))))
            e.copy(out, start, result, used)
        return e.poisoned(poison)

    return _compile(dtype, body, [POINTER, I64, I64, I64, POINTER, POINTER, POINTER, POINTER, POINTER, POINTER])


def _weighted_middle(
    e: Emitter, load: Callable[[Any], Any], sizes: tuple[int, int], tables: tuple[Any, Any], ends: tuple[Any, Any]
) -> Any:
    """As ``kernels._weighted_middle``: rows in the order of their weights, a counter of ties in each lane."""
    (k, f), (order, weights), (lowest, highest) = sizes, tables, ends
    values = [load(e.scalar(order, index, I64)) for index in range(k)]
    less = more = equal = e.mask_constant(0)
    for value in values:
        less = e.increase(less, e.compare("<", value, lowest))
        more = e.increase(more, e.compare(">", value, highest))
        equal = e.increase(equal, e.compare("==", value, highest))
    to_drop = e.b.sub(e.mask_constant(f), less)
    to_keep = e.b.sub(equal, e.b.sub(e.mask_constant(f), more))
    total = mass = nothing = e.wide_constant(0.0)
    for index, value in enumerate(values):
        at_low, at_high = e.compare("==", value, lowest), e.compare("==", value, highest)
        between = e.b.and_(e.compare(">", value, lowest), e.compare("<", value, highest))
        low_stays = e.b.and_(at_low, e.b.icmp_signed("<=", to_drop, e.mask_constant(0)))
        high_stays = e.b.and_(at_high, e.b.icmp_signed(">", to_keep, e.mask_constant(0)))
        stays = e.b.or_(between, e.b.or_(low_stays, high_stays))
        to_drop, to_keep = e.decrease(to_drop, at_low), e.decrease(to_keep, at_high)
        weight = e.splat(e.scalar(weights, index, F64))
        total = e.b.fadd(total, e.b.select(stays, e.b.fmul(e.widen(value), weight), nothing))
        mass = e.b.fadd(mass, e.b.select(stays, weight, nothing))
    same = e.compare("==", lowest, highest)
    mean = e.b.fdiv(total, e.b.select(same, e.wide_constant(1.0), mass))
    return e.b.select(same, e.widen(lowest), mean)


@lru_cache(maxsize=8)
def _weighted_sum(dtype: np.dtype[Any]) -> Callable[..., int]:
    def body(e: Emitter, arguments: Sequence[Any]) -> Any:
        table, n, whole, width, coefficients, mass, sums, out = arguments
        steps = [I64(step) for step in range(0, COLUMNS, e.lanes)]
        poison = e.variable(e.vector)

        def add(start: Any, columns: Any, members: Sequence[Any]) -> None:
            parts = [(row, e.splat(e.scalar(coefficients, row, F64)), e.row(table, row)) for row in members]
            with e.loop(columns, COLUMNS) as column:
                for step in steps:
                    at = e.sum(column, step)
                    total = e.load_wide(sums, at)
                    for row, coefficient, values in parts:
                        e.prefetch(table, e.least(e.sum(row, I64(len(members))), n), e.sum(start, at))
                        value = e.load(values, e.sum(start, at))
                        e.add_poison(poison, [value])
                        total = e.b.fadd(total, e.b.fmul(e.widen(value), coefficient))
                    e.store_wide(sums, at, total)

        with e.loop(whole, width) as start:
            columns = e.least(e.b.sub(whole, start), width)
            with e.loop(columns, COLUMNS) as column:
                for step in steps:
                    e.store_wide(sums, e.sum(column, step), e.wide_constant(0.0))
            # Several rows at a time, so that sums are loaded and stored less often; then those that are left.
            together = e.b.mul(e.b.sdiv(n, I64(TILE)), I64(TILE))
            with e.loop(together, TILE) as row:
                add(start, columns, [e.sum(row, I64(index)) for index in range(TILE)])
            with e.loop(n, 1, together) as row:
                add(start, columns, [row])
            divisor = e.splat(mass)
            with e.loop(columns, COLUMNS) as column:
                for step in steps:
                    at = e.sum(column, step)
                    mean = e.b.fadd(e.b.fdiv(e.load_wide(sums, at), divisor), e.wide_constant(0.0))
                    e.store(out, e.sum(start, at), e.narrow(mean))
        return e.poisoned(poison)

    return _compile(dtype, body, [POINTER, I64, I64, I64, POINTER, F64, POINTER, POINTER])


@lru_cache(maxsize=64)
def _squares(size: int, dtype: np.dtype[Any]) -> Callable[..., int]:
    def body(e: Emitter, arguments: Sequence[Any]) -> Any:
        table, n, d, width, block, sums = arguments

        def tile(first: Any, stop: Any, start: Any, rows: tuple[Any, Any], own: bool) -> None:
            cells = {(i, j): e.variable(e.vector) for i in range(TILE) for j in range(TILE) if i < j or not own}
            for total in cells.values():
                e.b.store(e.constant(0.0), total)
            with e.loop(stop, e.lanes, first) as column:

                def load(row: Any, index: int) -> Any:
                    return e.load(block, e.sum(e.b.mul(e.sum(row, I64(index)), width), column))

                left = [load(rows[0], index) for index in range(TILE)]
                right = left if own else [load(rows[1], index) for index in range(TILE)]
                for index in range(TILE if own else 0):
                    e.prefetch(table, e.sum(rows[0], I64(index)), e.sum(start, width, column))
                for (i, j), total in cells.items():
                    gap = e.b.fsub(left[i], right[j])
                    e.b.store(e.multiply_add(gap, gap, e.b.load(total, typ=e.vector)), total)
            for (i, j), total in cells.items():
                cell = e.sum(e.b.mul(e.sum(rows[0], I64(i)), I64(size)), rows[1], I64(j))
                at = e.b.mul(cell, I64(e.lanes))
                e.store_wide(sums, at, e.b.fadd(e.load_wide(sums, at), e.widen(e.b.load(total, typ=e.vector))))

        with e.blocks(table, n, d, width, block) as (start, _, columns), e.loop(columns, STRIP) as first:
            stop = e.least(e.sum(first, I64(STRIP)), columns)
            with e.loop(I64(size), TILE) as i:
                tile(first, stop, start, (i, i), True)
                with e.loop(I64(size), TILE, e.sum(i, I64(TILE))) as j:
                    tile(first, stop, start, (i, j), False)
        return I32(0)

    return _compile(dtype, body, [POINTER, I64, I64, I64, POINTER, POINTER])


def _compile(
    dtype: np.dtype[Any], body: Callable[[Emitter, Sequence[Any]], Any], kinds: Sequence[Any]
) -> Callable[..., int]:
    """A function for this processor; while it runs, other threads may."""
    with _lock:
        module = ir.Module("robust")
        function = ir.Function(module, ir.FunctionType(I32, kinds), "kernel")
        builder = ir.IRBuilder(function.append_basic_block("entry"))
        builder.position_at_end(builder.function.append_basic_block("first"))
        emitter = Emitter(builder, dtype.itemsize)
        builder.ret(body(emitter, function.args))
        with builder.goto_block(function.entry_basic_block):
            builder.branch(function.basic_blocks[1])
        binding.initialize_native_target()
        binding.initialize_native_asmprinter()
        machine = binding.Target.from_default_triple().create_target_machine(
            cpu=binding.get_host_cpu_name(), features=binding.get_host_cpu_features().flatten(), opt=3
        )
        parsed = binding.parse_assembly(str(module))
        parsed.verify()
        passes = binding.create_pass_builder(machine, binding.create_pipeline_tuning_options(speed_level=2))
        passes.getModulePassManager().run(parsed, passes)
        engine = binding.create_mcjit_compiler(parsed, machine)
        engine.finalize_object()
        _engines.append(engine)
        address = engine.get_function_address("kernel")
    c_types = {POINTER: ctypes.c_void_p, I64: ctypes.c_int64, F64: ctypes.c_double}
    return ctypes.CFUNCTYPE(ctypes.c_int32, *(c_types[kind] for kind in kinds))(address)


def _prepare(rows: Sequence[Array], size: int) -> tuple[NDArray[np.int64], int, Array]:
    """(addresses of ``size`` rows, width of a block, the block (size, width) of zeros)."""
    dtype, d = rows[0].dtype, rows[0].size
    width = max(COLUMNS, BLOCK_BYTES // (size * dtype.itemsize) // COLUMNS * COLUMNS)
    if width * dtype.itemsize % 4096 == 0:
        width -= COLUMNS  # a stride of whole pages would put one column of all rows into the same few cache lines
    width = min(max(COLUMNS, width), -(-d // COLUMNS) * COLUMNS)
    addresses = [row.ctypes.data for row in rows]
    addresses += addresses[:1] * (size - len(rows))
    return np.array(addresses, dtype=np.int64), width, np.zeros((size, width), dtype=dtype)


def _lanes(dtype: np.dtype[Any]) -> int:
    return 64 // dtype.itemsize
