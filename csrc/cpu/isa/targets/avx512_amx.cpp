// AVX-512 with bfloat16 pairs, and tiles of them (Intel servers since 2023).
#if defined(__x86_64__)

#include <immintrin.h>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define FASTRNN_TARGET avx512_amx
#define FASTRNN_TARGET_NAME "avx512_amx"
#define FASTRNN_VECTOR_BYTES 64
#define FASTRNN_ROWS_3 8
#define FASTRNN_ROWS_4 6
#define FASTRNN_HAS_BF16_DOT
#define FASTRNN_HAS_AMX

#if defined(__clang__)
#pragma clang attribute push(                                                                      \
    __attribute__((                                                                                \
        target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c,amx-tile,amx-bf16"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")
#endif

#include "cpu/isa/table.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif  // x86-64
