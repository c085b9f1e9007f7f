// AVX-512 with matrix tiles of bfloat16 pairs (Intel servers since 2023).
#if defined(__x86_64__)

#define FASTRNN_TARGET avx512_amx
#define FASTRNN_COMPILER_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma,f16c"
#define FASTRNN_RUNS has_avx512_bf16() && has_amx()
#define FASTRNN_VECTOR_BYTES 64
#define FASTRNN_TILE_ROWS_3 8
#define FASTRNN_TILE_ROWS_4 6
#define FASTRNN_HAS_AVX512
#define FASTRNN_HAS_INT8_DOT
#define FASTRNN_HAS_BF16_DOT
#define FASTRNN_HAS_AMX

#include "cpu/isa/target.inl.h"

#endif  // x86-64
