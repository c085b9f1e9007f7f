// A layer whose rows lie beyond 2^31 numbers of every per-step tensor must come out as one at the
// start of memory: a packed batch whose first step has a far row does that with two steps of work.
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <vector>

#include "cuda/step.h"

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
std::vector<float> run(int64_t start, Blas& blas) {
  const int64_t rows = start + T * B;
  const int64_t first[T + 1] = {start, start + B, start + 2 * B};
  const auto w_ih = numbers(S * H * I, 0.5), w_hh = numbers(S * H * H, 0.4), bias = numbers(S * H, 1);
  const auto h0 = numbers(B * H, 0.3), c0 = numbers(B * H, 0.8), near_x = numbers(T * B * I, 1);
  Sparse x(rows * I * 4), y(rows * H * 4), c(rows * H * 4), slots(rows * S * H * 4);
  std::copy(near_x.begin(), near_x.end(), x.as<float>() + start * I);
  std::vector<float> h_n(B * H), c_n(B * H), dh0(B * H), dc0(B * H);
  const Sequence sequence{T, B, rows, first, nullptr, nullptr, false};
  const Weights<float> weights{I,           H,           H,       w_ih.data(), w_hh.data(),
                               bias.data(), bias.data(), nullptr, nullptr};
  const ForwardArgs<float> forward{
      CellId::lstm,     sequence,  weights,       x.as<float>(), B * I,      I,
      h0.data(),        c0.data(), y.as<float>(), h_n.data(),    c_n.data(), c.as<float>(),
      slots.as<float>()};
  Sparse forward_workspace(step_forward_workspace(forward));
  step_forward(forward, forward_workspace.as<void>(), blas, nullptr);
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
  Sparse backward_workspace(step_backward_workspace(backward));
  step_backward(backward, backward_workspace.as<void>(), blas, nullptr);

  std::vector<float> all;
  const auto append = [&](const float* from, int64_t n) { all.insert(all.end(), from, from + n); };
  append(y.as<float>() + start * H, T * B * H);
  append(c.as<float>() + start * H, T * B * H);
  append(slots.as<float>() + start * S * H, T * B * S * H);
  for (const auto& part : {h_n, c_n, dh0, dc0}) append(part.data(), B * H);
  return all;
}

}  // namespace

// The largest difference that the rows' place makes.
double far_rows(Blas& blas) {
  constexpr int64_t far = (int64_t{1} << 31) / I + 1;
  const std::vector<float> near_results = run(0, blas), far_results = run(far, blas);
  double most = 0, largest = 0;
  for (size_t i = 0; i < near_results.size(); ++i) {
    most = std::max(most, std::abs(double{near_results[i]} - far_results[i]));
    largest = std::max(largest, std::abs(double{far_results[i]}));
  }
  if (largest == 0) throw std::runtime_error("nothing was computed");
  return most;
}

}  // namespace fastrnn::cuda
