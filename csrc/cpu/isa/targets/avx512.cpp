// x86-64 with AVX-512 F, BW, DQ and VL (Intel servers since 2017, AMD since 2022): 32 registers of
// 64 bytes.
#if defined(__x86_64__)

#include <immintrin.h>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define FASTRNN_TARGET avx512
#define FASTRNN_TARGET_NAME "avx512"
#define FASTRNN_VECTOR_BYTES 64
#define FASTRNN_ROWS_3 8
#define FASTRNN_ROWS_4 6

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

#include "cpu/isa/table.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif  // x86-64
