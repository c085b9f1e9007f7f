// x86-64 with AVX2, FMA and F16C (Intel since 2013, AMD since 2015): 16 registers of 32 bytes.
#if defined(__x86_64__)

#include <immintrin.h>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define FASTRNN_TARGET avx2
#define FASTRNN_TARGET_NAME "avx2"
#define FASTRNN_VECTOR_BYTES 32
#define FASTRNN_ROWS_3 4
#define FASTRNN_ROWS_4 3

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#include "cpu/isa/table.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif  // x86-64
