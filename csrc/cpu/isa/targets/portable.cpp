// Any machine: vectors of 16 bytes, which every 64-bit instruction set has.
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define FASTRNN_TARGET portable
#define FASTRNN_TARGET_NAME "portable"
#define FASTRNN_VECTOR_BYTES 16
#define FASTRNN_ROWS_3 4
#define FASTRNN_ROWS_4 3

#include "cpu/isa/table.h"
