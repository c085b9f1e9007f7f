// AVX2 with products of bytes (Intel's client processors since 2021, AMD since 2024).
#if defined(__x86_64__)

#define FASTRNN_TARGET avx2_vnni
#define FASTRNN_BASE_TARGET avx2
#define FASTRNN_COMPILER_TARGET "avx2,fma,f16c,avxvnni"
#define FASTRNN_RUNS has_avx2() && __builtin_cpu_supports("avxvnni")
#define FASTRNN_VECTOR_BYTES 32
#define FASTRNN_TILE_ROWS_3 4
#define FASTRNN_TILE_ROWS_4 2
#define FASTRNN_HAS_AVX2
#define FASTRNN_HAS_F16C
#define FASTRNN_HAS_INT8_DOT

#include "cpu/isa/target.inl.h"

#endif  // x86-64
