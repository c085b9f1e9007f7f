// What no Python library measures: how fast a core reads its cache, and the latency to another core.

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
