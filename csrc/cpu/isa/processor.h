// What this processor has, for FASTRNN_RUNS of the targets. Every function is compiled for any processor
// and is a file's own, since the tests compile one file for emulated matrix tiles.
#pragma once

#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__linux__) && defined(__aarch64__)
#include <sys/auxv.h>
#elif defined(__APPLE__) && defined(__aarch64__)
#include <sys/sysctl.h>
#endif

namespace fastrnn {

#if defined(__x86_64__)
[[maybe_unused]] static bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

[[maybe_unused]] static bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

[[maybe_unused]] static bool has_avx512_bf16() {
  return has_avx512() && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
}

// A process must ask the system for the matrix tiles' registers.
[[maybe_unused]] static bool has_amx() {
#if defined(FASTRNN_EMULATED_AMX)
  return true;
#elif defined(__linux__)
  constexpr long request_permission = 0x1023, tile_data = 18;
  return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
         __builtin_cpu_supports("amx-int8") && syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}
#endif

#if defined(__aarch64__)
// Products of bfloat16 pairs and of bytes.
[[maybe_unused]] static bool has_bf16_and_i8mm() {
#if defined(__linux__)
  constexpr unsigned long bf16 = 1ul << 14, i8mm = 1ul << 13;  // HWCAP2_BF16, HWCAP2_I8MM
  return (getauxval(AT_HWCAP2) & (bf16 | i8mm)) == (bf16 | i8mm);
#elif defined(__APPLE__)
  for (const char* name : {"hw.optional.arm.FEAT_BF16", "hw.optional.arm.FEAT_I8MM"}) {
    int found = 0;
    size_t size = sizeof(found);
    if (sysctlbyname(name, &found, &size, nullptr, 0) != 0 || found == 0) return false;
  }
  return true;
#else
  return false;
#endif
}
#endif

}  // namespace fastrnn
