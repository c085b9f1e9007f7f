// The ops on CUDA: torch's device, stream and cuBLAS for cuda_ops.h.
#include "torch/cuda_ops.h"

#include <cublas_v2.h>

#include "torch/stable/library.h"

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

void check_cublas(cublasStatus_t status) {
  FASTRNN_CHECK(status == CUBLAS_STATUS_SUCCESS, "fastrnn: cuBLAS: ", cublasGetStatusString(status));
}

cublasHandle_t current_handle() {
  void* handle;
  check_torch(torch_get_current_cuda_blas_handle(&handle));
  return static_cast<cublasHandle_t>(handle);
}

// cuBLAS on the current device and stream, with torch's handle and workspace.
class CuBlas final : public Blas {
 public:
  explicit CuBlas(bool tf32) : handle_(current_handle()) {
    // torch sets the mode anew whenever it takes the handle.
    const int mode = tf32 ? CUBLAS_TF32_TENSOR_OP_MATH : CUBLAS_DEFAULT_MATH;
    check_cublas(cublasSetMathMode(
        handle_, static_cast<cublasMath_t>(mode | CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION)));
  }

  // cuBLAS reads columns first, to which a row-major matrix is its transpose: c' = b' a'.
  void multiply(const Product& p) override {
    const auto op = [](bool transposed) { return transposed ? CUBLAS_OP_T : CUBLAS_OP_N; };
    const bool wide = p.type == Type::float64;
    const float one = 1, beta = p.accumulate;
    const double one_wide = 1, beta_wide = p.accumulate;
    check_cublas(cublasGemmEx_64(
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
  TorchGpu(const Tensor& x, bool tf32) : guard_(x.device().index), tf32_(tf32), blas_(tf32) {
    void* stream;
    check_torch(aoti_torch_get_current_cuda_stream(x.device().index, &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  cudaStream_t stream() const { return stream_; }
  Blas& blas() { return blas_; }
  bool tf32() const { return tf32_; }
  int arch() const {
    int device, major, minor;
    check(cudaGetDevice(&device), "current device");
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "device attribute");
    check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "device attribute");
    return 10 * major + minor;
  }

 private:
  // Makes a device the current one while it lives.
  class Guard {
   public:
    explicit Guard(int32_t device) { check_torch(aoti_torch_create_cuda_guard(device, &handle_)); }
    Guard(const Guard&) = delete;
    ~Guard() { aoti_torch_delete_cuda_guard(handle_); }

   private:
    CUDAGuardHandle handle_;
  };
  static void check(cudaError_t error, const char* what) {
    FASTRNN_CHECK(error == cudaSuccess, "fastrnn: ", what, ": ", cudaGetErrorString(error));
  }

  const Guard guard_;
  const bool tf32_;
  cudaStream_t stream_;
  CuBlas blas_;
};

// A line for each fact: its name, then its words.
std::string cuda_build() { return "archs " FASTRNN_CUDA_ARCHS "\ndrivers " + driver_names(); }

const bool registered [[maybe_unused]] = [] {
  Library cuda = Library::implementations("CUDA");
  cuda.implement<forward<TorchGpu>>("forward");
  cuda.implement<backward<TorchGpu>>("backward");
  cuda.implement<driver_for<TorchGpu>>("cuda_driver");
  Library all = Library::implementations("CompositeExplicitAutograd");
  all.implement<cuda_build>("cuda_build");
  return true;
}();

}  // namespace
}  // namespace fastrnn::cuda
