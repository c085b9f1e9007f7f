// ARM with products of bfloat16 pairs and of bytes (Armv8.6: servers since 2021).
#if defined(__aarch64__)

#define FASTRNN_TARGET neon_bf16
#define FASTRNN_COMPILER_TARGET "arch=armv8.2-a+bf16+i8mm"
#define FASTRNN_RUNS has_bf16_and_i8mm()
#define FASTRNN_VECTOR_BYTES 16
#define FASTRNN_TILE_ROWS_3 7
#define FASTRNN_TILE_ROWS_4 5
#define FASTRNN_HAS_NEON
#define FASTRNN_HAS_INT8_DOT
#define FASTRNN_HAS_BF16_DOT

#include "cpu/isa/target.inl.h"

#endif  // 64-bit ARM
