// Compiles the kernels for one instruction set. A file in targets/ defines these macros and includes this
// one:
//
//   FASTRNN_TARGET           the namespace of its kernels, and the name that users see
//   FASTRNN_BASE_TARGET      another target that has all tables but int8's; undefined if this one has its
//   own FASTRNN_COMPILER_TARGET  a string: extensions that the compiler may use; undefined for its default
//   FASTRNN_RUNS             whether this processor has them (processor.h)
//   FASTRNN_VECTOR_BYTES     size of a SIMD vector: 16, 32 or 64
//   FASTRNN_TILE_ROWS_3      most rows of a tile 3 vectors wide, for products with the three gates of GRU
//   FASTRNN_TILE_ROWS_4      most rows of tiles 1, 2 and 4 vectors wide, for all other products
//
// A tile's sums (rows times vectors), the weights of one k (vectors) and one operand should fit in the
// registers. Tiles of vectors have at most 8 rows, matrix tiles 16.
//
// and, for intrinsics.inl.h and lanes.inl.h,
//
//   FASTRNN_HAS_AVX512       vectors of 64 bytes, with masks
//   FASTRNN_HAS_AVX2, _F16C  vectors of 32 bytes, float16 conversion
//   FASTRNN_HAS_NEON         vectors of 16 bytes, products with one lane of a vector, float16 conversion
//   FASTRNN_HAS_INT8_DOT     one instruction multiplies fours of bytes and adds to int32
//   FASTRNN_HAS_BF16_DOT     one instruction multiplies pairs of bfloat16 and adds to float
//   FASTRNN_HAS_AMX          matrix tiles of both
//
// A cell compiled by itself (plugin.h) defines FASTRNN_PLUGIN, the file that has it, and includes a file in
// targets/: then only the cell's kernels are compiled.
//
// A header named .inl.h is compiled once for each instruction set. It has no include guard, no namespace
// and no includes of its own, and is included by this file alone. The system's headers are included before
// the switch to the instruction set. What comes after it is in the target's namespace or always inlined: of
// a function that several files share, the linker keeps one copy, which could be the one for AVX-512. The
// cells come after it, since GCC compiles a template for the instruction set at its definition.

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#ifdef FASTRNN_PLUGIN
#include <cmath>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "cpu/isa/processor.h"

namespace fastrnn::FASTRNN_TARGET {
[[maybe_unused]] static bool runs() { return FASTRNN_RUNS; }
}  // namespace fastrnn::FASTRNN_TARGET

#define FASTRNN_PRAGMA_OF(text) _Pragma(#text)
#define FASTRNN_PRAGMA(text) FASTRNN_PRAGMA_OF(text)

#if defined(FASTRNN_COMPILER_TARGET) && defined(__clang__)
FASTRNN_PRAGMA(clang attribute push(__attribute__((target(FASTRNN_COMPILER_TARGET))), apply_to = function))
#elif defined(FASTRNN_COMPILER_TARGET)
#pragma GCC push_options
FASTRNN_PRAGMA(GCC target(FASTRNN_COMPILER_TARGET))
#endif

#include "cpu/kernels.h"
#ifdef FASTRNN_PLUGIN
#include "cells/functions.h"
#include "cpu/plugin.h"
#endif

namespace fastrnn {

#include "cpu/isa/lanes.inl.h"

#if defined(FASTRNN_BASE_TARGET) && !defined(FASTRNN_PLUGIN)
namespace FASTRNN_BASE_TARGET {
extern const FloatTables float_tables;
}
#endif

namespace FASTRNN_TARGET {

#include "cpu/isa/vector.inl.h"

#include "cpu/isa/intrinsics.inl.h"

#include "cpu/isa/load_store.inl.h"

#ifdef FASTRNN_PLUGIN
#include FASTRNN_PLUGIN

#include "cpu/isa/cell.inl.h"

#include "cpu/isa/plugin.inl.h"
#else
#include "cpu/isa/matmul.inl.h"

#include "cpu/isa/convert.inl.h"

#include "cpu/isa/pack.inl.h"

#include "cpu/isa/int8.inl.h"

#include "cpu/isa/bias.inl.h"

#include "cpu/isa/cell.inl.h"

#include "cpu/isa/approximate.inl.h"

#ifdef FASTRNN_TARGET_CONTENTS  // of a test
#include FASTRNN_TARGET_CONTENTS
#else
#include "cpu/isa/table.inl.h"
#endif
#endif

}  // namespace FASTRNN_TARGET
}  // namespace fastrnn

#if defined(FASTRNN_COMPILER_TARGET) && defined(__clang__)
#pragma clang attribute pop
#elif defined(FASTRNN_COMPILER_TARGET)
#pragma GCC pop_options
#endif
