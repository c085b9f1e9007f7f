// AVX-512 with products of bfloat16 pairs (Intel since 2020, AMD since 2022).
#if defined(__x86_64__)

#define FASTRNN_TARGET avx512_bf16
#define FASTRNN_COMPILER_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma,f16c"
#define FASTRNN_RUNS has_avx512_bf16()
#define FASTRNN_VECTOR_BYTES 64
#define FASTRNN_TILE_ROWS_3 8
#define FASTRNN_TILE_ROWS_4 6
#define FASTRNN_HAS_AVX512
#define FASTRNN_HAS_INT8_DOT
#define FASTRNN_HAS_BF16_DOT

#include "cpu/isa/target.inl.h"

#endif  // x86-64
