// What no Python library measures: how fast a core reads its cache and multiplies bytes, and the latency to
// another core.

// Sums `count` floats (a multiple of 256) of x, which is aligned to 64 bytes, `repeats` times: how fast one
// thread reads memory that stays in a cache. Returns the sum, so that the compiler keeps the reads.

typedef float Vector __attribute__((vector_size(64)));

float read_floats(const float* x, long count, long repeats) {
  const Vector* v = (const Vector*)x;
  Vector sums[8] = {{0}};
  for (long r = 0; r < repeats; ++r) {
    for (long i = 0; i < count / 16; i += 16) {
      for (int k = 0; k < 8; ++k) sums[k] += v[i + k] + v[i + 8 + k];
    }
    // Otherwise the compiler may notice that every repeat reads the same.
    __asm__ volatile("" ::: "memory");
  }
  float total = 0;
  for (int k = 0; k < 8; ++k) {
    for (int lane = 0; lane < 16; ++lane) total += sums[k][lane];
  }
  return total;
}

#if defined(__AVX512VNNI__)
#include <immintrin.h>

// Multiplies and adds 12 * 64 pairs of bytes `repeats` times, in chains that do not wait for each other.
// Returns the number of products.
long multiply_bytes(long repeats) {
  __m512i sums[12], x = _mm512_set1_epi32(1);
#pragma GCC unroll 12
  for (int k = 0; k < 12; ++k) sums[k] = _mm512_setzero_si512();
  for (long r = 0; r < repeats; ++r) {
#pragma GCC unroll 12
    for (int k = 0; k < 12; ++k) {
      sums[k] = _mm512_dpbusd_epi32(sums[k], x, x);
      __asm__ volatile("" : "+v"(sums[k]));
    }
  }
  return repeats * 12 * 64;
}
#else
long multiply_bytes(long repeats) { return repeats * 0; }  // unknown
#endif

// One of two threads that pass a cache line back and forth. `begin` is 0 in the first and 1 in the second.
void hand_over(long* line, long begin, long turns) {
  for (long value = begin; value < 2 * turns; value += 2) {
    while (__atomic_load_n(line, __ATOMIC_ACQUIRE) != value) {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
    __atomic_store_n(line, value + 1, __ATOMIC_RELEASE);
  }
}
