#include "cpu/dispatch.h"

#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__linux__) && defined(__aarch64__)
#include <sys/auxv.h>
#elif defined(__APPLE__) && defined(__aarch64__)
#include <sys/sysctl.h>
#endif

#include <cstdlib>
#include <stdexcept>

namespace fastrnn {

#define FASTRNN_DECLARE(name) \
  namespace name {            \
  extern const Target target; \
  }
FASTRNN_TARGETS(FASTRNN_DECLARE)
#undef FASTRNN_DECLARE

namespace {

// runs_NAME() for every target: whether this processor runs it.
bool runs_portable() { return true; }

#if defined(__x86_64__)
// A process must ask the system for the matrix tiles' registers.
bool amx_granted() {
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

// Tests a table's products with whole numbers up to `largest`, such that sums are exact in any order.
// Matrix tiles are used only after passing this self-test: they were developed by emulation alone.
template <class Kernels>
bool products_are_right(const Kernels& kernels, int largest) {
  using Operand = typename Kernels::Operand;
  constexpr int64_t terms = 70, most_rows = max_tile_rows, columns = 64;
  const int64_t padded = (terms + kernels.k_step - 1) / kernels.k_step * kernels.k_step;
  std::vector<float> a(most_rows * terms), w(columns * terms), acc(most_rows * columns);
  int seed = 0;
  for (auto* numbers : {&a, &w}) {
    for (float& number : *numbers)
      number = static_cast<float>((seed += 7919) % (2 * largest + 1) - largest);
  }
  // Bytes that have 127 among them are quantized to themselves.
  for (int64_t m = 0; m < most_rows; ++m) a[m * terms] = static_cast<float>(largest);
  for (int64_t n = 0; n < columns; ++n) w[n * terms] = static_cast<float>(largest);
  const int64_t row = padded + 64;  // and a scale
  std::vector<Operand> operand(most_rows * row);
  std::vector<typename Kernels::Panel> panel((padded + 8) * columns);
  const Operand* rows[most_rows];
  for (int64_t m = 0; m < most_rows; ++m) {
    if constexpr (Kernels::quantizes) {
      kernels.quantize(terms, &a[m * terms], &operand[m * row]);
    } else {
      kernels.round_to_operand(terms, &a[m * terms], &operand[m * row]);
    }
    rows[m] = &operand[m * row];
  }
  kernels.pack_transposed(terms, w.data(), terms, 1, columns, columns, columns, panel.data());
  for (int count : {1, 7, max_tile_rows}) {
    kernels.multiply[max_tile_vectors][count](padded, rows, panel.data(), columns * kernels.k_step,
                                              acc.data(), /*accumulate=*/false);
    for (int64_t i = 0; i < count * columns; ++i) {
      float sum = 0;
      for (int64_t k = 0; k < terms; ++k) sum += a[i / columns * terms + k] * w[i % columns * terms + k];
      if (acc[i] != sum) return false;
    }
  }
  return true;
}

bool runs_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
bool runs_avx512() {
  return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
bool runs_avx2_vnni() { return runs_avx2() && __builtin_cpu_supports("avxvnni"); }
bool runs_avx512_vnni() { return runs_avx512() && __builtin_cpu_supports("avx512vnni"); }
bool runs_avx512_bf16() { return runs_avx512_vnni() && __builtin_cpu_supports("avx512bf16"); }
bool runs_avx512_amx() {
  return runs_avx512_bf16() && amx_granted() && products_are_right(*avx512_amx::target.f32_bf16_dot, 100) &&
         products_are_right(*avx512_amx::target.f32_split, 450) &&
         products_are_right(*avx512_amx::target.f32_int8, 127);
}
#endif

#if defined(__aarch64__)
bool runs_neon() { return true; }
bool runs_neon_bf16() {
#if defined(__linux__)
  constexpr unsigned long bf16 = 1ul << 14, int8 = 1ul << 13;  // HWCAP2_BF16, HWCAP2_I8MM
  return (getauxval(AT_HWCAP2) & (bf16 | int8)) == (bf16 | int8);
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

struct Candidate {
  const Target* target;
  bool usable;
};

const std::vector<Candidate>& candidates() {
  static const std::vector<Candidate> all = {
#define FASTRNN_CANDIDATE(name) {&name::target, runs_##name()},
      FASTRNN_TARGETS(FASTRNN_CANDIDATE)
#undef FASTRNN_CANDIDATE
  };
  return all;
}

std::string join(const std::vector<std::string>& names) {
  std::string joined;
  for (const std::string& name : names) joined += (joined.empty() ? "" : ", ") + name;
  return joined;
}

const Target& choose() {
  const char* wanted = std::getenv("FASTRNN_CPU_CAPABILITY");
  if (wanted == nullptr || *wanted == '\0') return usable_target(usable_targets().back());
  try {
    return usable_target(wanted);
  } catch (const std::runtime_error& error) {
    throw std::runtime_error("FASTRNN_CPU_CAPABILITY=" + std::string(error.what()));
  }
}

}  // namespace

const Target& target() {
  static const Target& chosen = choose();
  return chosen;
}

const Target& usable_target(const std::string& name) {
  for (const Candidate& c : candidates()) {
    if (c.usable && c.target->name == name) return *c.target;
  }
  throw std::runtime_error(name + " cannot be run here; this processor runs: " + join(usable_targets()));
}

std::vector<std::string> compiled_targets() {
  std::vector<std::string> names;
  for (const Candidate& c : candidates()) names.push_back(c.target->name);
  return names;
}

std::vector<std::string> usable_targets() {
  std::vector<std::string> names;
  for (const Candidate& c : candidates()) {
    if (c.usable) names.push_back(c.target->name);
  }
  return names;
}

}  // namespace fastrnn
