#include "cpu/dispatch.h"

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

bool passes_self_test(const Target& target) {
  if (target.f32_split == nullptr) return true;  // no matrix tiles
  return products_are_right(*target.f32_bf16_dot, 100) && products_are_right(*target.f32_split, 450) &&
         products_are_right(*target.f32_int8, 127);
}

struct Candidate {
  const Target* target;
  bool usable;
};

const std::vector<Candidate>& candidates() {
  static const std::vector<Candidate> all = {
#define FASTRNN_CANDIDATE(name) {&name::target, name::target.runs() && passes_self_test(name::target)},
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
