"""Fixed point in one pass over the vector: code that LLVM (``llvmlite``) makes for the processor at hand.

The words are those of ``fixedpoint``'s numpy code to the last bit: the same float64 operations in the same order, none
of them fused. Importing it fails where llvmlite is not installed; numpy then does the same in about twice the time. The
code is made once per process, in some hundredths of a second, and never kept on disk: cached machine code would be code
that no measurement of the image covers.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
from llvmlite import binding
from numpy.typing import NDArray

from cordon.secagg.fixedpoint import ROUND, UNIT

# For each coordinate: out of bounds unless |x| <= limit (no comparison is true of a NaN); x scale + dither + ROUND, the
# low word of which is written. LLVM makes vectors of the loop.
_SOURCE = """
declare double @llvm.fabs.f64(double)

define i32 @encode_32(ptr noalias %part, i64 %size, double %scale, double %limit, ptr noalias %dither,
                      ptr noalias %words, double %round) {
entry:
  %any = icmp sgt i64 %size, 0
  br i1 %any, label %loop, label %end
loop:
  %at = phi i64 [0, %entry], [%next, %loop]
  %bad = phi i32 [0, %entry], [%worse, %loop]
  %from = getelementptr float, ptr %part, i64 %at
  %single = load float, ptr %from, align 4
  %x = fpext float %single to double
  %size_of_x = call double @llvm.fabs.f64(double %x)
  %over = fcmp ugt double %size_of_x, %limit
  %over_32 = zext i1 %over to i32
  %worse = or i32 %bad, %over_32
  %scaled = fmul double %x, %scale
  %chance_from = getelementptr i32, ptr %dither, i64 %at
  %chance_32 = load i32, ptr %chance_from, align 4
  %chance = sitofp i32 %chance_32 to double
  %dithered = fadd double %scaled, %chance
  %rounded = fadd double %dithered, %round
  %bits = bitcast double %rounded to i64
  %word = trunc i64 %bits to i32
  %to = getelementptr i32, ptr %words, i64 %at
  store i32 %word, ptr %to, align 4
  %next = add nuw nsw i64 %at, 1
  %more = icmp slt i64 %next, %size
  br i1 %more, label %loop, label %end
end:
  %found = phi i32 [0, %entry], [%worse, %loop]
  ret i32 %found
}
"""


def encode_32(part: NDArray[np.float32], scale: float, limit: float, dither: NDArray[Any], words: NDArray[Any]) -> bool:
    """As in ``fixedpoint``, but ``words`` are written even where it gives False. All arrays are of one size."""
    part = np.ascontiguousarray(part)
    places = part.ctypes.data, dither.ctypes.data, words.ctypes.data
    return not _function()[1](places[0], part.size, scale * UNIT, limit, places[1], places[2], ROUND)


@cache
def _function() -> tuple[Any, Any]:
    """The engine, which the code lives as long as, and the function."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(), features=binding.get_host_cpu_features().flatten(), opt=3
    )
    module = binding.parse_assembly(_SOURCE)
    module.verify()
    options = binding.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = True
    passes = binding.create_pass_builder(machine, options)
    passes.getModulePassManager().run(module, passes)
    engine = binding.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    real, place = ctypes.c_double, ctypes.c_void_p
    made = ctypes.CFUNCTYPE(ctypes.c_int32, place, ctypes.c_int64, real, real, place, place, real)
    return engine, made(engine.get_function_address("encode_32"))
