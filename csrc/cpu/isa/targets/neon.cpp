// 64-bit ARM: 32 registers of 16 bytes.
#if defined(__aarch64__)

#define FASTRNN_TARGET neon
#define FASTRNN_RUNS true
#define FASTRNN_VECTOR_BYTES 16
#define FASTRNN_TILE_ROWS_3 7
#define FASTRNN_TILE_ROWS_4 5
#define FASTRNN_HAS_NEON

#include "cpu/isa/target.inl.h"

#endif  // 64-bit ARM
