// The ops on CUDA: torch's device, stream and cuBLAS for torch_cuda.h.
#include "torch/cuda_ops.h"

#include <ATen/Context.h>
#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/Exceptions.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

namespace fastrnn::cuda {
namespace {

cudaDataType_t data_type(Type type) {
  switch (type) {
    case Type::float64:
      return CUDA_R_64F;
    case Type::bfloat16:
      return CUDA_R_16BF;
    case Type::float16:
      return CUDA_R_16F;
    default:
      return CUDA_R_32F;
  }
}

// cuBLAS on the current device and stream, with torch's handle and workspace.
class CuBlas final : public Blas {
 public:
  explicit CuBlas(bool tf32) : handle_(at::cuda::getCurrentCUDABlasHandle()) {
    // torch sets the mode anew whenever it takes the handle.
    const int mode = tf32 ? CUBLAS_TF32_TENSOR_OP_MATH : CUBLAS_DEFAULT_MATH;
    TORCH_CUDABLAS_CHECK(cublasSetMathMode(
        handle_, static_cast<cublasMath_t>(mode | CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION)));
  }

  // cuBLAS reads columns first, to which a row-major matrix is its transpose: c' = b' a'.
  void multiply(const Product& p) override {
    const auto op = [](bool transposed) { return transposed ? CUBLAS_OP_T : CUBLAS_OP_N; };
    const bool wide = p.type == Type::float64;
    const float one = 1, beta = p.accumulate;
    const double one_wide = 1, beta_wide = p.accumulate;
    TORCH_CUDABLAS_CHECK(cublasGemmEx_64(
        handle_, op(p.b_transposed), op(p.a_transposed), p.n, p.m, p.k,
        wide ? static_cast<const void*>(&one_wide) : &one, p.b, data_type(p.type), p.b_row, p.a,
        data_type(p.type), p.a_row, wide ? static_cast<const void*>(&beta_wide) : &beta, p.c,
        data_type(p.c_type), p.c_row, wide ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
  }

 private:
  const cublasHandle_t handle_;
};

class TorchGpu {
 public:
  explicit TorchGpu(const at::Tensor& x) : guard_(x.device()), blas_(tf32_) {}

  cudaStream_t stream() const { return at::cuda::getCurrentCUDAStream(); }
  Blas& blas() { return blas_; }
  bool tf32() const { return tf32_; }
  int arch() const {
    const cudaDeviceProp* facts = at::cuda::getCurrentDeviceProperties();
    return 10 * facts->major + facts->minor;
  }

 private:
  const c10::cuda::CUDAGuard guard_;
  // What decides it for nn.LSTM: torch.backends.cudnn.rnn.fp32_precision.
  const bool tf32_ = at::globalContext().allowTF32CuDNN(at::Float32Op::RNN);
  CuBlas blas_;
};

}  // namespace
}  // namespace fastrnn::cuda

TORCH_LIBRARY_IMPL(fastrnn, CUDA, m) {
  m.impl("forward", fastrnn::cuda::forward<fastrnn::cuda::TorchGpu>);
  m.impl("backward", fastrnn::cuda::backward<fastrnn::cuda::TorchGpu>);
  m.impl("cuda_driver", fastrnn::cuda::driver_for<fastrnn::cuda::TorchGpu>);
}

TORCH_LIBRARY_IMPL(fastrnn, CatchAll, m) { m.impl("cuda_drivers", fastrnn::cuda::driver_names); }
