// Numbers beyond 2^31 of an array: what lies there must come out as what lies at the start of memory.
//
// Of a time loop, a packed batch whose first step has a far row shows it with two steps of work; of a
// kernel over all rows, its last block alone.
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <vector>

#include "cuda/common/pass_kernels.cuh"
#include "cuda/common/reductions.cuh"
#include "cuda/dispatch.h"

namespace fastrnn::cuda {
namespace {

constexpr int64_t T = 2, B = 3, I = 2, H = 4, S = 4;

// Memory that is there when it is touched.
class Sparse {
 public:
  explicit Sparse(int64_t bytes) : bytes_(bytes) {
    base_ =
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base_ == MAP_FAILED) throw std::runtime_error("no address space for a sparse buffer");
  }
  Sparse(const Sparse&) = delete;
  ~Sparse() { munmap(base_, bytes_); }
  template <class Number>
  Number* as() {
    return static_cast<Number*>(base_);
  }

 private:
  void* base_;
  int64_t bytes_;
};

std::vector<float> numbers(int64_t n, float scale) {
  std::vector<float> all(n);
  for (int64_t i = 0; i < n; ++i) all[i] = scale * std::sin(1.0f + 0.7f * static_cast<float>(i));
  return all;
}

// Everything a layer computes whose first row is `start`.
std::vector<float> run(const Driver<float>& driver, int64_t start, Blas& blas) {
  const int64_t rows = start + T * B;
  const int64_t first[T + 1] = {start, start + B, start + 2 * B};
  const auto w_ih = numbers(S * H * I, 0.5), w_hh = numbers(S * H * H, 0.4), bias = numbers(S * H, 1);
  const auto h0 = numbers(B * H, 0.3), c0 = numbers(B * H, 0.8), near_x = numbers(T * B * I, 1);
  Sparse x(rows * I * 4), y(rows * H * 4), c(rows * H * 4), slots(rows * S * H * 4);
  std::copy(near_x.begin(), near_x.end(), x.as<float>() + start * I);
  std::vector<float> h_n(B * H), c_n(B * H), dh0(B * H), dc0(B * H);
  const Sequence sequence{T, B, rows, first, nullptr, nullptr, false};
  const Weights<float> weights{I, H, H, w_ih.data(), w_hh.data(), bias.data(), bias.data(), nullptr};
  const ForwardArgs<float> forward{
      CellId::lstm,     sequence,  weights,       x.as<float>(), B * I,      I,
      h0.data(),        c0.data(), y.as<float>(), h_n.data(),    c_n.data(), c.as<float>(),
      slots.as<float>()};
  Sparse forward_workspace(driver.forward_workspace(forward));
  driver.forward(forward, forward_workspace.as<void>(), blas, nullptr);
  BackwardArgs<float> backward{};
  backward.cell = CellId::lstm;
  backward.sequence = sequence;
  backward.weights = weights;
  backward.x = x.as<float>();
  backward.h0 = h0.data();
  backward.c0 = c0.data();
  backward.y = backward.dy = y.as<float>();
  backward.c = backward.dc = c.as<float>();
  backward.slots = slots.as<float>();
  backward.dh0 = dh0.data();
  backward.dc0 = dc0.data();
  Sparse backward_workspace(driver.backward_workspace(backward));
  driver.backward(backward, backward_workspace.as<void>(), blas, nullptr);

  std::vector<float> all;
  const auto append = [&](const float* from, int64_t n) { all.insert(all.end(), from, from + n); };
  append(y.as<float>() + start * H, T * B * H);
  append(c.as<float>() + start * H, T * B * H);
  append(slots.as<float>() + start * S * H, T * B * S * H);
  for (const auto& part : {h_n, c_n, dh0, dc0}) append(part.data(), B * H);
  return all;
}

// ---- Kernels over all rows: each on `rows` rows of zeros but for the last, whose last results it gives
// ----

constexpr int64_t wide = int64_t{1} << 19, last = 256;  // units of a row, and how many of them are compared

// An array [rows, width] of zeros whose last numbers are not.
class Rows : public Sparse {
 public:
  Rows(int64_t rows, int64_t width, float scale)
      : Sparse(rows * width * 4), end_(as<float>() + rows * width) {
    const std::vector<float> values = numbers(width < 8 * wide ? width : 8 * wide, scale);
    std::copy(values.begin(), values.end(), end_ - width);
  }
  std::vector<float> tail() const { return {end_ - last, end_}; }

 private:
  float* end_;
};

std::vector<float> gathered(int64_t rows) {
  Rows steps(rows, 4 * wide, 1), to(rows + 1, 4 * wide, 0);
  const DeviceSequence sequence{rows + 1, 1, nullptr, nullptr, nullptr, false};
  launch(
      "gather", gather<4, float>, spread(rows + 1, 4 * wide, 4), nullptr,
      Gather<float>{sequence, 0, rows + 1, 4 * wide, steps.as<float>(), steps.as<float>(), to.as<float>()});
  return to.tail();
}

std::vector<float> recomputed(int64_t rows) {
  Rows input(rows, 4 * wide, 1), recurrent(rows, 4 * wide, 0.5), bias(1, 4 * wide, 0.2);
  Rows c(rows, wide, 0.7), slots(rows, 4 * wide, 0);
  launch("recompute", recompute<4, Lstm, float>, spread(rows, wide, 4), nullptr,
         Recompute<float>{rows, wide, input.as<float>(), recurrent.as<float>(), bias.as<float>(), nullptr,
                          c.as<float>(), c.as<float>(), slots.as<float>()});
  return slots.tail();
}

std::vector<float> output_again(int64_t rows) {
  Rows slots(rows, 4 * wide, 1), c(rows, wide, 0.7), to(rows, wide, 0);
  launch("outputs", outputs<4, Lstm, float>, spread(rows, wide, 4), nullptr,
         Outputs<float>{rows, wide, slots.as<float>(), c.as<float>(), to.as<float>()});
  return to.tail();
}

std::vector<float> summed(int64_t rows) {
  const int64_t a_part = (rows + 1) / 2, parts = (rows + a_part - 1) / a_part;
  Rows from(rows, 4 * wide, 1), partial(parts, 4 * wide, 0);
  launch("sum_rows", sum_rows<float>,
         {{static_cast<unsigned>(4 * wide / sum_columns), static_cast<unsigned>(parts), 1},
          {sum_columns, sum_lines, 1},
          int{sizeof(float)} * sum_columns * sum_lines},
         nullptr, SumRows<float>{rows, 4 * wide, a_part, from.as<float>(), partial.as<float>()});
  return partial.tail();
}

// The largest difference of far results from near ones.
double difference(const std::vector<float>& near_results, const std::vector<float>& far_results) {
  double most = 0, largest = 0;
  for (size_t i = 0; i < near_results.size(); ++i) {
    most = std::max(most, std::abs(double{near_results[i]} - far_results[i]));
    largest = std::max(largest, std::abs(double{far_results[i]}));
  }
  if (largest == 0) throw std::runtime_error("nothing was computed");
  return most;
}

}  // namespace

double far_rows(const std::string& driver, Blas& blas) {
  constexpr int64_t far = (int64_t{1} << 31) / I + 1;
  const Driver<float>& chosen = *find_driver<float>(driver);
  return difference(run(chosen, 0, blas), run(chosen, far, blas));
}

double far_kernel(const std::string& name) {
  constexpr int64_t far = (int64_t{1} << 31) / wide + 2;
  const auto kernel = name == "gather"      ? gathered
                      : name == "recompute" ? recomputed
                      : name == "outputs"   ? output_again
                                            : summed;
  emulation::options().last_only = true;
  const std::vector<float> near_results = kernel(1), far_results = kernel(far);
  emulation::options().last_only = false;
  return difference(near_results, far_results);
}

}  // namespace fastrnn::cuda
