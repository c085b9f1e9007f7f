// x86-64 with AVX-512 F, BW, DQ and VL (Intel servers since 2017, AMD since 2022): 32 registers of 64
// bytes.
#if defined(__x86_64__)

#define FASTRNN_TARGET avx512
#define FASTRNN_COMPILER_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"
#define FASTRNN_RUNS has_avx512()
#define FASTRNN_VECTOR_BYTES 64
#define FASTRNN_TILE_ROWS_3 8
#define FASTRNN_TILE_ROWS_4 6
#define FASTRNN_HAS_AVX512

#include "cpu/isa/target.inl.h"

#endif  // x86-64
