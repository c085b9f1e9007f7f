// x86-64 with AVX2, FMA and F16C (Intel since 2013, AMD since 2015): 16 registers of 32 bytes.
#if defined(__x86_64__)

#define FASTRNN_TARGET avx2
#define FASTRNN_COMPILER_TARGET "avx2,fma,f16c"
#define FASTRNN_RUNS has_avx2()
#define FASTRNN_VECTOR_BYTES 32
#define FASTRNN_TILE_ROWS_3 4  // of tiles 3 vectors wide, which the gates of GRU fill
#define FASTRNN_TILE_ROWS_4 3  // of tiles 1, 2 and 4 vectors wide, which serve all other products
#define FASTRNN_HAS_AVX2
#define FASTRNN_HAS_F16C

#include "cpu/isa/target.inl.h"

#endif  // x86-64
