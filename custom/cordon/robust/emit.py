"""Vector instructions for ``compiled``: a thin layer over LLVM's builder, for vectors of 64 bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

I32, I64, F64, POINTER = ir.IntType(32), ir.IntType(64), ir.DoubleType(), ir.PointerType()
COLUMNS = 64  # loops go over whole multiples of it; blocks are padded with zeros to one
FUSED = ("contract",)  # multiply and add may become one instruction


class Emitter:
    """Writes instructions where ``b`` stands.

    Args:
        b: LLVM's builder.
        size: bytes of a value of the rows: 4 (float32) or 8 (float64). A vector has 64 bytes.
    """

    def __init__(self, b: ir.IRBuilder, size: int) -> None:
        self.b, self.size, self.lanes = b, size, 64 // size
        self.real = ir.FloatType() if size == 4 else F64
        self.vector = ir.VectorType(self.real, self.lanes)
        self.wide = ir.VectorType(F64, self.lanes)
        self.mask = ir.VectorType(I32, self.lanes)

    # -- control ----------------------------------------------------------------------------------------------------

    def variable(self, kind: Any) -> Any:
        """A variable, zero at first; the optimiser keeps it in a register."""
        with self.b.goto_block(self.b.function.entry_basic_block):
            variable = self.b.alloca(kind)
            self.b.store(ir.Constant(kind, [0] * kind.count if isinstance(kind, ir.VectorType) else 0), variable)
        return variable

    @contextmanager
    def loop(self, stop: Any, step: int | Any, start: Any = None) -> Iterator[Any]:
        """``for index in range(start, stop, step)``."""
        index = self.variable(I64)
        self.b.store(I64(0) if start is None else start, index)
        head, inside, done = (self.b.append_basic_block(name) for name in ("head", "inside", "done"))
        self.b.branch(head)
        self.b.position_at_end(head)
        value = self.b.load(index, typ=I64)
        self.b.cbranch(self.b.icmp_signed("<", value, stop), inside, done)
        self.b.position_at_end(inside)
        yield value
        self.b.store(self.b.add(value, I64(step) if isinstance(step, int) else step), index)
        self.b.branch(head)
        self.b.position_at_end(done)

    @contextmanager
    def blocks(self, table: Any, n: Any, d: Any, width: Any, block: Any) -> Iterator[tuple[Any, Any, Any]]:
        """For each ``width`` columns: copy those of n rows to ``block``; (first column, columns, padded columns)."""
        with self.loop(d, width) as start:
            used = self.least(self.b.sub(d, start), width)
            padded = self.b.and_(self.sum(used, I64(COLUMNS - 1)), I64(-COLUMNS))
            with self.loop(n, 1) as row:
                source = self.b.gep(self.row(table, row), [start], source_etype=self.real)
                self.copy(block, self.b.mul(row, width), source, used)
                end = self.b.gep(block, [self.sum(self.b.mul(row, width), used)], source_etype=self.real)
                zeros = self.b.mul(self.b.sub(padded, used), I64(self.size))
                self._call("llvm.memset.p0.i64", [POINTER, ir.IntType(8), I64, ir.IntType(1)])(
                    end, ir.IntType(8)(0), zeros, ir.IntType(1)(0)
                )
            yield start, used, padded

    # -- memory -----------------------------------------------------------------------------------------------------

    def load(self, base: Any, index: Any) -> Any:
        """Vector at element ``index``."""
        return self.b.load(self.b.gep(base, [index], source_etype=self.real), align=self.size, typ=self.vector)

    def store(self, base: Any, index: Any, value: Any) -> None:
        """Likewise, to memory."""
        self.b.store(value, self.b.gep(base, [index], source_etype=self.real), align=self.size)

    def scalar(self, base: Any, index: int | Any, kind: Any) -> Any:
        """One value of ``kind`` at ``index``."""
        where = I64(index) if isinstance(index, int) else index
        return self.b.load(self.b.gep(base, [where], source_etype=kind), typ=kind)

    def load_wide(self, base: Any, index: Any) -> Any:
        """Vector of float64 at element ``index``."""
        return self.b.load(self.b.gep(base, [index], source_etype=F64), align=8, typ=self.wide)

    def store_wide(self, base: Any, index: Any, value: Any) -> None:
        """Likewise, to memory."""
        self.b.store(value, self.b.gep(base, [index], source_etype=F64), align=8)

    def count(self, counts: Any, row: int, condition: Any) -> None:
        """Add one to the counters of ``row`` in the lanes where ``condition`` holds."""
        at = self.b.gep(counts, [I64(row * self.lanes)], source_etype=I32)
        self.b.store(self.increase(self.b.load(at, align=4, typ=self.mask), condition), at, align=4)

    def copy(self, base: Any, index: Any, source: Any, values: Any) -> None:
        """``values`` values from ``source`` to element ``index``."""
        self._call("llvm.memcpy.p0.p0.i64", [POINTER, POINTER, I64, ir.IntType(1)])(
            self.b.gep(base, [index], source_etype=self.real),
            source,
            self.b.mul(values, I64(self.size)),
            ir.IntType(1)(0),
        )

    def prefetch(self, table: Any, row: Any, index: Any) -> None:
        """Ask for the cache line at element ``index`` of a row. (Past the end of the row it does nothing.)"""
        at = self.b.gep(self.row(table, row), [index], source_etype=self.real)
        self._call("llvm.prefetch.p0", [POINTER, I32, I32, I32])(at, I32(0), I32(2), I32(1))

    def row(self, table: Any, row: Any) -> Any:
        """Address of a row."""
        return self.b.load(self.b.gep(table, [row], source_etype=POINTER), typ=POINTER)

    def _call(self, name: str, kinds: Sequence[Any]) -> Any:
        module = self.b.module
        function = module.globals.get(name) or ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), name)
        return lambda *arguments: self.b.call(function, arguments)

    # -- arithmetic -------------------------------------------------------------------------------------------------

    def sum(self, first: Any, *others: Any) -> Any:
        """Integer sum."""
        for other in others:
            first = self.b.add(first, other)
        return first

    def least(self, a: Any, b: Any) -> Any:
        """Lesser of two integers."""
        return self.b.select(self.b.icmp_signed("<", a, b), a, b)

    def compare(self, how: str, a: Any, b: Any) -> Any:
        """Truth per lane; false for NaN."""
        return self.b.fcmp_ordered(how, a, b)

    def minimum(self, a: Any, b: Any) -> Any:
        """a where a < b, else b: one instruction on common processors."""
        return self.b.select(self.compare("<", a, b), a, b)

    def maximum(self, a: Any, b: Any) -> Any:
        """a where a > b, else b."""
        return self.b.select(self.compare(">", a, b), a, b)

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        """a b + c, rounded once where the processor can."""
        return self.b.fadd(self.b.fmul(a, b, flags=FUSED), c, flags=FUSED)

    def increase(self, counters: Any, condition: Any) -> Any:
        """One more where ``condition`` holds."""
        return self.b.sub(counters, self.b.sext(condition, self.mask))

    def decrease(self, counters: Any, condition: Any) -> Any:
        """One less where ``condition`` holds."""
        return self.b.add(counters, self.b.sext(condition, self.mask))

    def constant(self, value: float) -> Any:
        """The same in every lane."""
        return ir.Constant(self.vector, [value] * self.lanes)

    def wide_constant(self, value: float) -> Any:
        """Likewise, float64."""
        return ir.Constant(self.wide, [value] * self.lanes)

    def mask_constant(self, value: int) -> Any:
        """Likewise, integers."""
        return ir.Constant(self.mask, [value] * self.lanes)

    def splat(self, value: Any) -> Any:
        """A float64 in every lane."""
        nothing = ir.Constant(self.wide, ir.Undefined)
        one = self.b.insert_element(nothing, value, I32(0))
        return self.b.shuffle_vector(one, nothing, ir.Constant(ir.VectorType(I32, self.lanes), [0] * self.lanes))

    def widen(self, value: Any) -> Any:
        """As float64."""
        return value if self.real == F64 else self.b.fpext(value, self.wide)

    def narrow(self, value: Any) -> Any:
        """As the rows' type."""
        return value if self.real == F64 else self.b.fptrunc(value, self.vector)

    # -- what is not finite -----------------------------------------------------------------------------------------

    def add_poison(self, poison: Any, values: Sequence[Any]) -> None:
        """poison += 0 * value: NaN for good from the first value that is not finite."""
        total = self.b.load(poison, typ=self.vector)
        for value in values:
            total = self.multiply_add(value, self.constant(0.0), total)
        self.b.store(total, poison)

    def poisoned(self, poison: Any) -> Any:
        """1 where any lane is poisoned, else 0."""
        total = self.b.load(poison, typ=self.vector)
        bits = ir.IntType(self.lanes)
        bad = self.b.bitcast(self.b.fcmp_unordered("uno", total, total), bits)
        return self.b.zext(self.b.icmp_signed("!=", bad, bits(0)), I32)
