// What no Python library measures: how fast a core reads its cache, and how far another core is.

// How fast one thread reads memory that stays in a cache: sums `count` floats (a multiple of 256) of
// 64-byte aligned x, `repeats` times. Returns the sum, so that the reads cannot be left out.

typedef float Vector __attribute__((vector_size(64)));

float read_floats(const float* x, long count, long repeats) {
  const Vector* v = (const Vector*)x;
  Vector sums[8] = {{0}};
  for (long r = 0; r < repeats; ++r) {
    for (long i = 0; i < count / 16; i += 16) {
      for (int k = 0; k < 8; ++k) sums[k] += v[i + k] + v[i + 8 + k];
    }
    // Else the compiler may see that every repeat reads the same.
    __asm__ volatile("" ::: "memory");
  }
  float total = 0;
  for (int k = 0; k < 8; ++k) {
    for (int lane = 0; lane < 16; ++lane) total += sums[k][lane];
  }
  return total;
}

// One of two threads that hand a cache line to each other, the first of them with `begin` 0, the second with 1.
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
