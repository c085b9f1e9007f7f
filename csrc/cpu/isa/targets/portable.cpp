// Any processor: vectors of 16 bytes, which every 64-bit instruction set has.
#define FASTRNN_TARGET portable
#define FASTRNN_RUNS true
#define FASTRNN_VECTOR_BYTES 16
#define FASTRNN_TILE_ROWS_3 4
#define FASTRNN_TILE_ROWS_4 3

#include "cpu/isa/target.inl.h"
