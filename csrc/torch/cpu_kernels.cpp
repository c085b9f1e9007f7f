#include "torch/cpu_kernels.h"

namespace fastrnn {
namespace {

// The least exact products of float32 that torch.set_float32_matmul_precision or
// torch.backends.mkldnn.rnn.fp32_precision allow: of operands rounded to bfloat16 ("medium", "bf16"), or of
// each as the sum of two bfloat16 ("high", "tf32").
at::Float32MatmulPrecision allowed_precision() {
  using Precision = at::Float32MatmulPrecision;
  const at::Context& context = at::globalContext();
  const Precision matmul = context.float32MatmulPrecision();
  const at::Float32Precision rnn = context.float32Precision(at::Float32Backend::MKLDNN, at::Float32Op::RNN);
  if (matmul == Precision::MEDIUM || rnn == at::Float32Precision::BF16) return Precision::MEDIUM;
  if (matmul == Precision::HIGH || rnn == at::Float32Precision::TF32) return Precision::HIGH;
  return Precision::HIGHEST;
}

AnyKernels choose_float_kernels(const Target& t, Packing packing, bool may_split) {
  if (packing == Packing::bf16) return t.f32_w16;
  if (packing == Packing::int8) return t.f32_w8;
  if (t.f32_bf16_dot == nullptr) return t.f32;  // rounded products would be no faster
  const at::Float32MatmulPrecision allowed = allowed_precision();
  if (allowed == at::Float32MatmulPrecision::MEDIUM) return t.f32_bf16_dot;
  if (t.f32_split && allowed == at::Float32MatmulPrecision::HIGH && may_split) return t.f32_split;
  return t.f32;
}

}  // namespace

Packing find_packing(std::string_view weights, at::ScalarType type) {
  if (weights == "own") return Packing::own;
  TORCH_CHECK_VALUE(weights == "bfloat16" || weights == "int8",
                    "fastrnn: weights can be packed as own, bfloat16 or int8, got ", weights);
  TORCH_CHECK_VALUE(type == at::kFloat, "fastrnn: only float32 weights can be packed as ", weights,
                    ", got ", type);
  return weights == "int8" ? Packing::int8 : Packing::bf16;
}

AnyKernels choose_kernels(at::ScalarType type, Packing packing, bool may_split) {
  const Target& t = target();
  switch (type) {
    case at::kFloat:
      return choose_float_kernels(t, packing, may_split);
    case at::kDouble:
      return t.f64;
    case at::kHalf:
      return t.f16;
    case at::kBFloat16:
      if (t.bf16_dot) return t.bf16_dot;
      return t.bf16;
    default:
      TORCH_CHECK_VALUE(
          false, "fastrnn: the kernels compute in float32, float64, bfloat16 and float16, not in ", type);
  }
}

}  // namespace fastrnn
