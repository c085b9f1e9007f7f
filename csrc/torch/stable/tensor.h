// A torch tensor through torch's stable C interface, the same in every torch from 2.10 on.
//
// Its sizes, strides, dtype, device and memory are read once, when the handle is taken. Copies are
// explicit: contiguous(), narrow() and view() of a tensor that is already so give one that borrows the
// handle of the first and must not outlive it. An op's arguments live as long as the op runs.
#pragma once

#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <initializer_list>
#include <span>
#include <utility>

#include "torch/stable/check.h"

namespace fastrnn {

// Throws what went wrong inside torch.
void check_torch(AOTITorchError error);

enum class Dtype { float32, float64, bfloat16, float16, int64, boolean, uint8, other };
Dtype dtype_of(int32_t code);
int32_t code_of(Dtype dtype);
const char* name_of(Dtype dtype);
int64_t bytes_of(Dtype dtype);

struct Device {
  int32_t type, index;
  bool operator==(const Device&) const = default;
  bool is_cpu() const;
};
std::string text(Device device);
std::string text(Dtype dtype);

// Up to four sizes or strides.
struct Sizes {
  static constexpr int max_dim = 4;
  int64_t values[max_dim] = {};
  int count = 0;

  Sizes() = default;
  Sizes(std::initializer_list<int64_t> sizes) : Sizes(std::span(sizes.begin(), sizes.size())) {}
  explicit Sizes(std::span<const int64_t> sizes) {
    FASTRNN_CHECK(sizes.size() <= max_dim, "fastrnn: got a tensor of ", int64_t(sizes.size()),
                  " dimensions, expected at most 4");
    count = static_cast<int>(sizes.size());
    std::copy(sizes.begin(), sizes.end(), values);
  }

  Sizes with(int64_t last) const {
    Sizes all = *this;
    all.values[all.count++] = last;
    return all;
  }
  int64_t numel() const {
    int64_t n = 1;
    for (int i = 0; i < count; ++i) n *= values[i];
    return n;
  }
  std::span<const int64_t> span() const { return {values, static_cast<size_t>(count)}; }
  operator std::span<const int64_t>() const { return span(); }
};
inline std::string text(const Sizes& sizes) { return text(sizes.span()); }

class Tensor {
 public:
  Tensor() = default;  // an absent tensor
  // Takes the handle over.
  explicit Tensor(AtenTensorHandle handle) : handle_(handle), owns_(true) { read(); }
  Tensor(Tensor&& other) noexcept { swap(other); }
  Tensor& operator=(Tensor&& other) noexcept {
    swap(other);
    return *this;
  }
  Tensor(const Tensor&) = delete;
  ~Tensor() {
    if (owns_) aoti_torch_delete_tensor_object(handle_);
  }

  // The same tensor, owned elsewhere.
  Tensor borrow() const {
    Tensor same;
    same.handle_ = handle_;
    same.facts_ = facts_;
    return same;
  }
  // The handle, for whoever takes it over: torch, as a result.
  AtenTensorHandle release();
  AtenTensorHandle handle() const { return handle_; }

  bool defined() const { return handle_ != nullptr; }
  int64_t dim() const { return facts_.dim; }
  int64_t size(int64_t i) const { return facts_.sizes[i < 0 ? i + facts_.dim : i]; }
  int64_t stride(int64_t i) const { return facts_.strides[i < 0 ? i + facts_.dim : i]; }
  std::span<const int64_t> sizes() const { return {facts_.sizes, static_cast<size_t>(facts_.dim)}; }
  int64_t numel() const { return facts_.numel; }
  Dtype dtype() const { return facts_.dtype; }
  Device device() const { return facts_.device; }
  bool is_cpu() const { return facts_.device.is_cpu(); }
  bool has_sizes(std::span<const int64_t> expected) const { return std::ranges::equal(sizes(), expected); }
  bool is_contiguous() const;

  // Its memory; null for an absent or empty tensor.
  template <class T>
  T* data() const {
    return static_cast<T*>(facts_.data);
  }

  Tensor contiguous() const;
  // Rows start .. start + length of the first dimension, or columns of the second.
  Tensor narrow(int dim, int64_t start, int64_t length) const;
  Tensor view(const Sizes& sizes) const;  // of a contiguous tensor
  Tensor flatten_steps() const;           // [T * B, I] of [T, B, I] with evenly spaced rows
  Tensor transpose() const;               // of a matrix
  Tensor to(Dtype dtype) const;           // a copy, unless it is of this dtype

 private:
  struct Facts {
    const int64_t *sizes = nullptr, *strides = nullptr;
    int64_t dim = 0, numel = 0;
    Dtype dtype = Dtype::other;
    Device device{};
    void* data = nullptr;
  };
  void read();
  Tensor reinterpret(const Sizes& sizes, const Sizes& strides, int64_t offset) const;
  void swap(Tensor& other) noexcept {
    std::swap(handle_, other.handle_);
    std::swap(facts_, other.facts_);
    std::swap(owns_, other.owns_);
  }

  AtenTensorHandle handle_ = nullptr;
  Facts facts_;
  bool owns_ = false;
};

// A Tensor? argument: a tensor that may be absent.
struct OptionalTensor : Tensor {
  using Tensor::Tensor;
};

// Uninitialized and contiguous.
Tensor empty(const Sizes& sizes, Dtype dtype, Device device);
inline Tensor empty_like(const Tensor& t) { return empty(Sizes(t.sizes()), t.dtype(), t.device()); }

// torch's own operators.
Tensor mm(const Tensor& a, const Tensor& b);
void mm_out(Tensor& out, const Tensor& a, const Tensor& b);
void copy_to(Tensor& to, const Tensor& from);
void zero(const Tensor& t);
Tensor sum_rows(const Tensor& t);  // [1, n] of [rows, n]
double sum(const Tensor& t);

// No graph is recorded of what is computed while it lives.
class NoGrad {
 public:
  NoGrad() : before_(aoti_torch_grad_mode_is_enabled()) {
    if (before_) aoti_torch_grad_mode_set_enabled(false);
  }
  ~NoGrad() {
    if (before_) aoti_torch_grad_mode_set_enabled(true);
  }
  NoGrad(const NoGrad&) = delete;
  NoGrad& operator=(const NoGrad&) = delete;

 private:
  bool before_;
};

}  // namespace fastrnn
