#include "cpu/dispatch.h"

#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdlib>
#include <stdexcept>

namespace fastrnn {

namespace portable {
extern const Target target;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Target target;
}
namespace avx512 {
extern const Target target;
}
namespace avx512_bf16 {
extern const Target target;
}
namespace avx512_amx {
extern const Target target;
}
#endif

namespace {

struct Candidate {
  const Target* target;
  bool usable;
};

#if defined(__x86_64__)
// Tiles are large registers, which a process has to ask the system for.
bool amx_granted() {
#if defined(FASTRNN_EMULATED_AMX)
  return true;
#elif defined(__linux__)
  constexpr long request_permission = 0x1023, tile_data = 18;
  return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
         syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}

// Whether a table's products are right, of whole numbers up to `largest` whose sums are exact in any order.
// Tiles were tested by emulation alone, so that a processor is not believed before it has shown it.
template <class Kernels>
bool multiplies_right(const Kernels& kernels, int largest) {
  using Operand = typename Kernels::Operand;
  constexpr int64_t terms = 70, most_rows = max_tile_rows, columns = 64;
  const int64_t padded = (terms + kernels.k_step - 1) / kernels.k_step * kernels.k_step;
  std::vector<float> a(most_rows * terms), w(columns * terms), acc(most_rows * columns);
  int seed = 0;
  for (auto* numbers : {&a, &w}) {
    for (float& number : *numbers)
      number = static_cast<float>((seed += 7919) % (2 * largest + 1) - largest);
  }
  std::vector<Operand> operand(most_rows * padded), panel(padded * columns);
  const Operand* rows[most_rows];
  for (int64_t m = 0; m < most_rows; ++m) {
    kernels.round_to_operand(terms, &a[m * terms], &operand[m * padded]);
    rows[m] = &operand[m * padded];
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

bool tiles_usable() {
  return amx_granted() && multiplies_right(*avx512_amx::target.f32_bf16_dot, 100) &&
         multiplies_right(*avx512_amx::target.f32_split, 450);
}
#endif

const std::vector<Candidate>& candidates() {
  static const std::vector<Candidate> all = [] {
    std::vector<Candidate> list = {{&portable::target, true}};
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    list.push_back({&avx2::target, avx2});
    list.push_back({&avx512::target, avx512});
    const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
    list.push_back({&avx512_bf16::target, bf16});
    list.push_back({&avx512_amx::target, bf16 && tiles_usable()});
#endif
    return list;
  }();
  return all;
}

std::string join(const std::vector<std::string>& names) {
  std::string joined;
  for (const std::string& name : names) joined += (joined.empty() ? "" : ", ") + name;
  return joined;
}

const Target& choose() {
  const char* wanted = std::getenv("FASTRNN_CPU_CAPABILITY");
  const Target* best = nullptr;
  const bool named = wanted != nullptr && *wanted != '\0';
  for (const Candidate& c : candidates()) {
    if (c.usable && (!named || wanted == std::string(c.target->name))) best = c.target;
  }
  if (best == nullptr) {
    throw std::runtime_error("FASTRNN_CPU_CAPABILITY=" + std::string(wanted) +
                             " cannot be run here; this processor runs: " + join(usable_targets()));
  }
  return *best;
}

}  // namespace

const Target& target() {
  static const Target& chosen = choose();
  return chosen;
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
