#include "dispatch.h"

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
  bool by_name_only = false;  // until it has been measured
};

#if defined(__x86_64__)
// Tiles are large registers, which a process has to ask the system for.
bool amx_usable() {
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
    list.push_back({&avx512_amx::target, bf16 && amx_usable(), /*by_name_only=*/true});
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
    if (c.usable && (named ? wanted == std::string(c.target->name) : !c.by_name_only)) best = c.target;
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
