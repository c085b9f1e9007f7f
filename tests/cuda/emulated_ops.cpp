// torch.ops.fastrnn_emulated: the CUDA ops of csrc/torch/cuda_ops.h over emulated kernels and CPU tensors,
// with products by ATen.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <iterator>
#include <sstream>

#include "emulation/emulation.h"
#include "torch/cuda_ops.h"
#include "torch/schemas.h"
#include "torch/stable/library.h"

namespace fastrnn::cuda {

double far_rows(const std::string& driver, Blas& blas);  // emulated_64bit_offsets.cpp
double far_kernel(const std::string& name);

namespace {

at::ScalarType scalar_type(Type type) {
  switch (type) {
    case Type::float64:
      return at::kDouble;
    case Type::bfloat16:
      return at::kBFloat16;
    case Type::float16:
      return at::kHalf;
    default:
      return at::kFloat;
  }
}

// A matrix [rows, columns] in memory with a stride from row to row.
at::Tensor matrix(const void* from, int64_t rows, int64_t columns, int64_t row, Type type) {
  return at::from_blob(const_cast<void*>(from), {rows, columns}, {row, 1}, at::dtype(scalar_type(type)));
}

class AtenBlas final : public Blas {
 public:
  void multiply(const Product& p) override {
    const at::ScalarType sums = p.type == Type::float64 ? at::kDouble : at::kFloat;
    at::Tensor a = p.a_transposed ? matrix(p.a, p.k, p.m, p.a_row, p.type).t()
                                  : matrix(p.a, p.m, p.k, p.a_row, p.type);
    at::Tensor b = p.b_transposed ? matrix(p.b, p.n, p.k, p.b_row, p.type).t()
                                  : matrix(p.b, p.k, p.n, p.b_row, p.type);
    at::Tensor c = matrix(p.c, p.m, p.n, p.c_row, p.c_type);
    at::Tensor product = at::mm(a.to(sums), b.to(sums));
    if (p.accumulate) product += c.to(sums);
    c.copy_(product);
  }
};

class EmulatedGpu {
 public:
  EmulatedGpu(const Tensor& /*x*/, bool /*tf32*/) {}
  cudaStream_t stream() const { return nullptr; }
  Blas& blas() { return blas_; }
  bool tf32() const { return true; }
  int arch() const { return 90; }

 private:
  AtenBlas blas_;
};

double compare_far_rows(const std::string& driver) {
  AtenBlas blas;
  return far_rows(driver, blas);
}

bool serves(std::string_view driver, std::string_view cell, int64_t H, at::ScalarType dtype) {
  bool does = false;
  for_type(dtype_of(static_cast<int32_t>(dtype)), [&](auto tag) {
    using S = decltype(tag);
    if constexpr (!std::is_same_v<S, double>) {
      does = find_driver<S>(driver)->serves(
          {find_cell(cell), type_of<S>, Pass::forward, 1, 1, H, /*projects=*/false, /*tf32=*/true, 90});
    }
  });
  return does;
}

void set_options(int64_t seed, bool skip_barriers) {
  emulation::options().seed = static_cast<uint64_t>(seed);
  emulation::options().skip_barriers = skip_barriers;
}

void set_device(int64_t multiprocessors, int64_t shared_bytes, int64_t absent_block) {
  emulation::options().multiprocessors = static_cast<int>(multiprocessors);
  emulation::options().shared_bytes = static_cast<int>(shared_bytes);
  emulation::options().absent_block = absent_block;
}

std::vector<std::string> driver_list() {
  std::istringstream words(driver_names());
  return {std::istream_iterator<std::string>(words), {}};
}

int64_t products() { return static_cast<int64_t>(emulation::products()); }

}  // namespace
}  // namespace fastrnn::cuda

TORCH_LIBRARY(fastrnn_emulated, m) {
  m.def(fastrnn::forward_schema);
  m.def(fastrnn::backward_schema);
  m.def(
      "cuda_driver(Tensor x, str cell, int T, int B, int H, bool projects, bool backward, "
      "int precision=0) -> (str name, str reason)");
  m.def("cuda_drivers() -> str[]", fastrnn::cuda::driver_list);
  m.def("far_rows(str driver) -> float", fastrnn::cuda::compare_far_rows);
  m.def("far_kernel(str name) -> float", fastrnn::cuda::far_kernel);
  m.def("serves(str driver, str cell, int H, ScalarType dtype) -> bool", fastrnn::cuda::serves);
  m.def("device(int multiprocessors=132, int shared_bytes=232448, int absent_block=-1) -> ()",
        fastrnn::cuda::set_device);
  m.def("products() -> int", fastrnn::cuda::products);
  // The ops of csrc go by torch's stable interface, as on a GPU.
  using namespace fastrnn;
  Library ops = Library::implementations("CompositeExplicitAutograd", "fastrnn_emulated");
  ops.implement<cuda::forward<cuda::EmulatedGpu>>("forward");
  ops.implement<cuda::backward<cuda::EmulatedGpu>>("backward");
  ops.implement<cuda::driver_for<cuda::EmulatedGpu>>("cuda_driver");
  m.def("options(int seed, bool skip_barriers) -> ()", fastrnn::cuda::set_options);
}
