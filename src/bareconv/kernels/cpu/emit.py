"""A small language for kernels: Python that writes a machine loop.

A kernel is a Python function that is run once, at compile time. What it computes with ``Value`` objects becomes machine
code; ordinary Python around it decides what code there is. So ``for i in range(4)`` writes its body four times, and
``for i in k.range(n)`` writes a loop. Values are integers, numbers or vectors of numbers, with the usual operators.

    k = Builder(module, "axpy", target)
    for i in k.range(0, n, k.lanes):
        y.store(k.fma(a, x.vector(i), y.vector(i)), i)

There is nothing in it that these kernels do not use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from llvmlite import ir

from bareconv.kernels.cpu.target import Target

I1, I8, I32, I64 = ir.IntType(1), ir.IntType(8), ir.IntType(32), ir.IntType(64)
PTR = ir.PointerType()
Index: TypeAlias = "int | Value"


class Value:
    """An integer, a number, or a vector of either, in the kernel being written."""

    __slots__ = ("ir", "k")

    def __init__(self, k: Builder, value: Any) -> None:
        self.k, self.ir = k, value

    @property
    def type(self) -> Any:
        return self.ir.type

    def _is_float(self) -> bool:
        kind = self.type.element if isinstance(self.type, ir.VectorType) else self.type
        return isinstance(kind, ir.FloatType | ir.DoubleType)

    def _binary(self, other: Any, integer: str, floating: str, swap: bool = False) -> Value:
        a, b = self.ir, self.k.as_type(other, self.type).ir
        a, b = (b, a) if swap else (a, b)
        return Value(self.k, getattr(self.k.ir, floating if self._is_float() else integer)(a, b))

    def __add__(self, other: Any) -> Value:
        return self._binary(other, "add", "fadd")

    def __radd__(self, other: Any) -> Value:
        return self._binary(other, "add", "fadd", swap=True)

    def __sub__(self, other: Any) -> Value:
        return self._binary(other, "sub", "fsub")

    def __rsub__(self, other: Any) -> Value:
        return self._binary(other, "sub", "fsub", swap=True)

    def __mul__(self, other: Any) -> Value:
        return self._binary(other, "mul", "fmul")

    def __rmul__(self, other: Any) -> Value:
        return self._binary(other, "mul", "fmul", swap=True)

    def __truediv__(self, other: Any) -> Value:
        return self._binary(other, "", "fdiv")

    def __rtruediv__(self, other: Any) -> Value:
        return self._binary(other, "", "fdiv", swap=True)

    def __floordiv__(self, other: Any) -> Value:
        """Of integers that are not negative."""
        return self._binary(other, "udiv", "")

    def __mod__(self, other: Any) -> Value:
        """Of integers that are not negative."""
        return self._binary(other, "urem", "")

    def __and__(self, other: Any) -> Value:
        return self._binary(other, "and_", "")

    def __or__(self, other: Any) -> Value:
        return self._binary(other, "or_", "")

    def __lshift__(self, other: Any) -> Value:
        return self._binary(other, "shl", "")

    def compare(self, sign: str, other: Any) -> Value:
        """True, lane by lane, where ``self sign other``; comparisons with NaN are false."""
        a, b = self.ir, self.k.as_type(other, self.type).ir
        made = self.k.ir.fcmp_ordered(sign, a, b) if self._is_float() else self.k.ir.icmp_signed(sign, a, b)
        return Value(self.k, made)

    def __gt__(self, other: Any) -> Value:
        return self.compare(">", other)

    def __lt__(self, other: Any) -> Value:
        return self.compare("<", other)

    def __ge__(self, other: Any) -> Value:
        return self.compare(">=", other)

    def equals(self, other: Any) -> Value:
        """True, lane by lane, where the two are equal."""
        return self.compare("==", other)


class Variable:
    """A value that changes; it lives in a register as long as there are enough."""

    __slots__ = ("_slot", "_type", "k")

    def __init__(self, k: Builder, start: Value) -> None:
        self.k, self._type = k, start.type
        with k.ir.goto_entry_block():
            self._slot = k.ir.alloca(self._type)
        self.value = start

    @property
    def value(self) -> Value:
        return Value(self.k, self.k.ir.load(self._slot, typ=self._type))

    @value.setter
    def value(self, new: Value) -> None:
        self.k.ir.store(new.ir, self._slot)


class Pointer:
    """An address of elements of one type; offsets count elements."""

    __slots__ = ("element", "ir", "k")

    def __init__(self, k: Builder, value: Any, element: Any) -> None:
        self.k, self.ir, self.element = k, value, element

    def __add__(self, offset: Index) -> Pointer:
        if isinstance(offset, int) and offset == 0:
            return self
        moved = self.k.ir.gep(self.ir, [self.k.index(offset).ir], source_etype=self.element)
        return Pointer(self.k, moved, self.element)

    @property
    def _bytes(self) -> int:
        return {"float": 4, "double": 8}.get(str(self.element)) or self.element.width // 8

    def load(self, offset: Index = 0) -> Value:
        """One element."""
        return Value(self.k, self.k.ir.load((self + offset).ir, align=self._bytes, typ=self.element))

    def load_shared(self, offset: Index = 0) -> Value:
        """One integer that another thread may be writing, with all that it wrote before."""
        return Value(self.k, self.k.ir.load_atomic((self + offset).ir, "acquire", self._bytes, typ=self.element))

    def add_shared(self, amount: int) -> None:
        """Add to an integer that other threads add to as well, after all that was written before."""
        self.k.ir.atomic_rmw("add", self.ir, self.element(amount), "seq_cst")

    def vector(self, offset: Index = 0, mask: Value | None = None, lanes: int | None = None) -> Value:
        """``lanes`` elements in a row, by default a register full of numbers; zeros where ``mask`` is false."""
        kind = ir.VectorType(self.element, lanes or self.k.lanes)
        at = (self + offset).ir
        if mask is None:
            return Value(self.k, self.k.ir.load(at, align=self._bytes, typ=kind))
        return self.k.intrinsic("masked.load", kind, [at, I32(self._bytes), mask.ir, kind(None)], [kind, PTR])

    def splat(self, offset: Index = 0) -> Value:
        """One element, in every lane of a register."""
        return self.k.splat(self.load(offset))

    def store(self, value: Value, offset: Index = 0, mask: Value | None = None) -> None:
        """An element or a vector; where ``mask`` is false, memory is left alone."""
        at = (self + offset).ir
        if mask is None:
            self.k.ir.store(value.ir, at, align=self._bytes)
        elif sum(lane.constant for lane in mask.ir.constant) == 1:
            # By itself: for AVX-512 LLVM makes four bytes of one that was cut off from an integer (LLVM 22).
            self.k.ir.store(self.k.lane(value, 0).ir, at, align=self._bytes)
        else:
            args = [value.ir, at, I32(self._bytes), mask.ir]
            self.k.intrinsic("masked.store", ir.VoidType(), args, [value.type, PTR])

    def gather(self, indices: Value) -> Value:
        """The elements at ``indices``, a vector of integers."""
        k, lanes = self.k, indices.type.count
        kind = ir.VectorType(self.element, lanes)
        many, everywhere = self._all(indices)
        args = [many, I32(self._bytes), everywhere, kind(None)]
        return k.intrinsic("masked.gather", kind, args, [kind, many.type])

    def scatter(self, indices: Value, value: Value) -> None:
        """Store the lanes of ``value`` at ``indices``."""
        many, everywhere = self._all(indices)
        args = [value.ir, many, I32(self._bytes), everywhere]
        self.k.intrinsic("masked.scatter", ir.VoidType(), args, [value.type, many.type])

    def _all(self, indices: Value) -> tuple[Any, Any]:
        lanes = indices.type.count
        many = self.k.ir.gep(self.ir, [indices.ir], source_etype=self.element)
        many.type = ir.VectorType(PTR, lanes)
        return many, ir.Constant(ir.VectorType(I1, lanes), [1] * lanes)


class Builder:
    """Writes one function ``name``, of no result, of a module."""

    def __init__(self, module: ir.Module, name: str, target: Target, arguments: Sequence[Any]) -> None:
        self.target, self.lanes = target, target.lanes
        self.number = ir.FloatType() if target.dtype == "float32" else ir.DoubleType()
        self.vector_type = ir.VectorType(self.number, self.lanes)
        self.function = ir.Function(module, ir.FunctionType(ir.VoidType(), list(arguments)), name)
        self.function.attributes.add("nounwind")
        entry = self.function.append_basic_block("entry")
        self.ir = ir.IRBuilder(self.function.append_basic_block("body"))
        with self.ir.goto_block(entry):
            self.ir.branch(self.function.blocks[1])
        self.module = module

    # Constants

    def as_type(self, value: Any, kind: Any) -> Value:
        """A Python number as a constant of that type; a scalar as a vector of it."""
        if not isinstance(value, Value):
            if isinstance(kind, ir.VectorType):
                return Value(self, ir.Constant(kind, [value] * kind.count))
            return Value(self, ir.Constant(kind, value))
        if isinstance(kind, ir.VectorType) and not isinstance(value.type, ir.VectorType):
            return self.splat(value, kind.count)
        return value

    def index(self, value: Index) -> Value:
        return value if isinstance(value, Value) else Value(self, ir.Constant(I64, value))

    def constant(self, value: float) -> Value:
        """A number in every lane."""
        return self.as_type(value, self.vector_type)

    @property
    def zero(self) -> Value:
        return self.constant(0.0)

    def tail(self, count: int) -> Value | None:
        """The mask of the first ``count`` lanes; None where that is all of them."""
        if count >= self.lanes:
            return None
        return Value(self, ir.Constant(ir.VectorType(I1, self.lanes), [int(i < count) for i in range(self.lanes)]))

    def as_lanes(self, values: Sequence[float]) -> Value:
        """These numbers, one a lane."""
        return Value(self, ir.Constant(self.vector_type, list(values)))

    def lane_numbers(self, kind: Any = I64, step: int = 1) -> Value:
        """0, step, 2 step, ...: one a lane."""
        return Value(self, ir.Constant(ir.VectorType(kind, self.lanes), [i * step for i in range(self.lanes)]))

    # Values

    def variable(self, start: Value) -> Variable:
        return Variable(self, start)

    def scratch(self, element: Any, count: int) -> Pointer:
        """``count`` elements on the stack."""
        with self.ir.goto_entry_block():
            return Pointer(self, self.ir.alloca(element, size=I32(count)), element)

    def splat(self, value: Value, lanes: int | None = None) -> Value:
        """A scalar in every lane."""
        kind = ir.VectorType(value.type, lanes or self.lanes)
        one = self.ir.insert_element(ir.Constant(kind, ir.Undefined), value.ir, I32(0))
        zeros = ir.Constant(ir.VectorType(I32, kind.count), [0] * kind.count)
        return Value(self, self.ir.shuffle_vector(one, ir.Constant(kind, ir.Undefined), zeros))

    def shuffle(self, a: Value, b: Value, lanes: Sequence[int]) -> Value:
        """The lanes with those numbers; b's are counted on from a's."""
        return Value(self, self.ir.shuffle_vector(a.ir, b.ir, ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes))))

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """a * b + c, rounded once."""
        return self.intrinsic("fma", a.type, [a.ir, b.ir, c.ir], [a.type])

    def maximum(self, a: Value, b: Value) -> Value:
        """The larger; a where one is NaN, as the machine's own instruction has it of its second operand."""
        return self.select(b > a, b, a)

    def minimum(self, a: Value, b: Value) -> Value:
        """The smaller; b where one is NaN."""
        return self.select(a < b, a, b)

    def select(self, condition: Value, yes: Value, no: Value) -> Value:
        return Value(self, self.ir.select(condition.ir, yes.ir, no.ir))

    def sqrt(self, a: Value) -> Value:
        return self.intrinsic("sqrt", a.type, [a.ir], [a.type])

    def reduce(self, a: Value, operation: Callable[[Value, Value], Value]) -> Value:
        """One number from all lanes, in a fixed tree."""
        width = a.type.count
        while width > 1:
            width //= 2
            a = operation(self.shuffle(a, a, range(width)), self.shuffle(a, a, range(width, 2 * width)))
        return Value(self, self.ir.extract_element(a.ir, I32(0)))

    def sum(self, a: Value) -> Value:
        """The sum over the lanes."""
        return self.reduce(a, lambda x, y: x + y)

    def lane(self, a: Value, i: int) -> Value:
        return Value(self, self.ir.extract_element(a.ir, I32(i)))

    def convert(self, value: Value, kind: Any) -> Value:
        """To another element type, lane by lane; 8-bit integers are unsigned, others signed."""
        lanes = value.type.count if isinstance(value.type, ir.VectorType) else 0
        source = value.type.element if lanes else value.type
        wanted = ir.VectorType(kind, lanes) if lanes else kind
        if source == kind:
            return value
        floating = (ir.FloatType, ir.DoubleType)
        if isinstance(source, ir.IntType) and isinstance(kind, ir.IntType):
            how = "trunc" if kind.width < source.width else "zext" if source.width <= 8 else "sext"
        elif isinstance(source, ir.IntType):
            how = "uitofp" if source.width <= 8 else "sitofp"
        elif isinstance(kind, floating):
            how = "fpext" if isinstance(kind, ir.DoubleType) else "fptrunc"
        else:
            how = "fptosi"
        return Value(self, getattr(self.ir, how)(value.ir, wanted))

    def widen(self, value: Value, kind: Any) -> Value:
        """An integer that is not negative, as a wider or narrower one."""
        how = "trunc" if kind.width < value.type.width else "zext"
        return value if kind.width == value.type.width else Value(self, getattr(self.ir, how)(value.ir, kind))

    def bits(self, value: Value, kind: Any) -> Value:
        """The same bits as another type."""
        return Value(self, self.ir.bitcast(value.ir, kind))

    def intrinsic(self, name: str, result: Any, args: Sequence[Any], overloads: Sequence[Any]) -> Value:
        """A call of LLVM's own function of that name."""
        full = "llvm." + name + "".join("." + _spelled(kind) for kind in overloads)
        function = self.module.globals.get(full)
        if function is None:
            kind = ir.FunctionType(result, [a.type for a in args])
            function = ir.Function(self.module, kind, full)
        return Value(self, self.ir.call(function, args))

    # Control

    def range(self, start: Index, stop: Index, step: int = 1) -> Iterator[Value]:
        """A loop of the machine: ``for i in k.range(0, n):`` writes its body once. No break, no return from it."""
        first, last = self.index(start), self.index(stop)
        before = self.ir.block
        body, after = self.ir.append_basic_block("loop"), self.ir.append_basic_block("done")
        if isinstance(start, int) and isinstance(stop, int):
            if start >= stop:
                raise ValueError(f"empty loop from {start} to {stop}")
            self.ir.branch(body)
        else:
            self.ir.cbranch((first < last).ir, body, after)
        self.ir.position_at_end(body)
        i = self.ir.phi(I64)
        i.add_incoming(first.ir, before)
        yield Value(self, i)
        following = Value(self, i) + step
        i.add_incoming(following.ir, self.ir.block)
        self.ir.cbranch((following < last).ir, body, after)
        self.ir.position_at_end(after)

    def repeat_while(self, condition: Callable[[], Value]) -> Iterator[None]:
        """A loop that goes on as long as the condition, computed anew before each turn, is true."""
        test, body, after = (self.ir.append_basic_block(name) for name in ("while", "turn", "done"))
        self.ir.branch(test)
        self.ir.position_at_end(test)
        self.ir.cbranch(condition().ir, body, after)
        self.ir.position_at_end(body)
        yield
        self.ir.branch(test)
        self.ir.position_at_end(after)

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """What is written within runs only where the condition is true."""
        with self.ir.if_then(condition.ir):
            yield

    def call(self, address: Value, arguments: Sequence[Value]) -> None:
        """Call the function of no result that lies at that address."""
        kind = ir.FunctionType(ir.VoidType(), [a.type for a in arguments])
        self.ir.call(self.ir.inttoptr(address.ir, kind.as_pointer()), [a.ir for a in arguments])

    def opaque(self, address: Value) -> Value:
        """An address as an argument of a call."""
        return Value(self, self.ir.inttoptr(address.ir, PTR))

    def pointer(self, address: Value, element: Any) -> Pointer:
        """The elements that lie at that address."""
        return Pointer(self, self.ir.inttoptr(address.ir, PTR), element)

    def pause(self) -> None:
        """A hint that this is a loop of waiting."""
        if "x86" in self.module.triple:
            self.intrinsic("x86.sse2.pause", ir.VoidType(), [], [])

    def give_way(self) -> None:
        """Offer the core to other threads."""
        name = "sched_yield"
        function = self.module.globals.get(name) or ir.Function(self.module, ir.FunctionType(I32, []), name)
        self.ir.call(function, [])

    @property
    def clock(self) -> Value:
        """Ticks of the processor's counter: what they are in seconds is for the caller to find out."""
        return self.intrinsic("readcyclecounter", I64, [], [])

    def flush_denormals(self) -> Callable[[], None]:
        """From here on numbers too small to be normal count as zero; what is returned writes the way back.

        Velocities of weights that get no gradient shrink until each operation on them costs a hundred times as much.
        Elsewhere than on x86 nothing changes.
        """
        if "x86" not in self.module.triple and "i686" not in self.module.triple:
            return lambda: None
        word = self.scratch(I32, 1)

        def control(name: str) -> None:
            self.intrinsic(f"x86.sse.{name}", ir.VoidType(), [word.ir], [])

        control("stmxcsr")
        before = word.load()
        word.store(before | 0x8040)  # flush to zero, and denormals are zeros
        control("ldmxcsr")

        def restore() -> None:
            word.store(before)
            control("ldmxcsr")

        return restore

    def finish(self) -> None:
        self.ir.ret_void()


def _spelled(kind: Any) -> str:
    if isinstance(kind, ir.VectorType):
        return f"v{kind.count}{_spelled(kind.element)}"
    if isinstance(kind, ir.PointerType):
        return "p0"
    if isinstance(kind, ir.IntType):
        return f"i{kind.width}"
    return "f32" if isinstance(kind, ir.FloatType) else "f64"
