#include "torch/stable/tensor.h"

#include <torch/headeronly/version.h>

#include <array>
#include <cstring>

// The message of an error inside torch, from torch 2.13 on.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

namespace fastrnn {
namespace {

struct DtypeFacts {
  int32_t code;
  const char* name;
  int64_t bytes;
};

const std::array<DtypeFacts, 7>& dtypes() {
  static const std::array<DtypeFacts, 7> all = {{
      {aoti_torch_dtype_float32(), "float32", 4},
      {aoti_torch_dtype_float64(), "float64", 8},
      {aoti_torch_dtype_bfloat16(), "bfloat16", 2},
      {aoti_torch_dtype_float16(), "float16", 2},
      {aoti_torch_dtype_int64(), "int64", 8},
      {aoti_torch_dtype_bool(), "bool", 1},
      {aoti_torch_dtype_uint8(), "uint8", 1},
  }};
  return all;
}

int32_t cpu_device() {
  static const int32_t type = aoti_torch_device_type_cpu();
  return type;
}

StableIValue value_of(int64_t number) { return static_cast<StableIValue>(number); }

// A handle of the same tensor that torch may own.
StableIValue shared(const Tensor& t) {
  AtenTensorHandle handle;
  check_torch(aoti_torch_new_tensor_handle(t.handle(), &handle));
  return reinterpret_cast<StableIValue>(handle);
}

Tensor first_result(const StableIValue* stack) {
  AtenTensorHandle handle;
  memcpy(&handle, stack, sizeof(handle));
  return Tensor(handle);
}

void call(const char* name, const char* overload, StableIValue* stack) {
  check_torch(torch_call_dispatcher(name, overload, stack, TORCH_ABI_VERSION));
}

Sizes contiguous_strides(const Sizes& sizes) {
  Sizes strides = sizes;
  int64_t n = 1;
  for (int i = sizes.count - 1; i >= 0; --i) {
    strides.values[i] = n;
    n *= std::max<int64_t>(sizes.values[i], 1);
  }
  return strides;
}

}  // namespace

void check_torch(AOTITorchError error) {
  if (error == AOTI_TORCH_SUCCESS) [[likely]]
    return;
  const bool tells = torch_exception_get_what_without_backtrace != nullptr;
  fail<std::runtime_error>(tells ? torch_exception_get_what_without_backtrace()
                                 : "fastrnn: torch reported an error; its message is on stderr");
}

Dtype dtype_of(int32_t code) {
  const auto& all = dtypes();
  for (size_t i = 0; i < all.size(); ++i) {
    if (all[i].code == code) return static_cast<Dtype>(i);
  }
  return Dtype::other;
}
int32_t code_of(Dtype dtype) { return dtypes()[static_cast<size_t>(dtype)].code; }
const char* name_of(Dtype dtype) {
  return dtype == Dtype::other ? "another dtype" : dtypes()[static_cast<size_t>(dtype)].name;
}
int64_t bytes_of(Dtype dtype) { return dtypes()[static_cast<size_t>(dtype)].bytes; }

bool Device::is_cpu() const { return type == cpu_device(); }
std::string text(Device device) {
  if (device.is_cpu()) return "cpu";
  const bool cuda = device.type == aoti_torch_device_type_cuda();
  return (cuda ? "cuda:" : "device " + std::to_string(device.type) + ":") + std::to_string(device.index);
}
std::string text(Dtype dtype) { return name_of(dtype); }

void Tensor::read() {
  int64_t *sizes, *strides;
  int32_t dtype;
  check_torch(aoti_torch_get_dim(handle_, &facts_.dim));
  check_torch(aoti_torch_get_sizes(handle_, &sizes));
  check_torch(aoti_torch_get_strides(handle_, &strides));
  check_torch(aoti_torch_get_dtype(handle_, &dtype));
  check_torch(aoti_torch_get_device_type(handle_, &facts_.device.type));
  check_torch(aoti_torch_get_device_index(handle_, &facts_.device.index));
  facts_.sizes = sizes;
  facts_.strides = strides;
  facts_.dtype = dtype_of(dtype);
  facts_.numel = 1;
  for (int64_t i = 0; i < facts_.dim; ++i) facts_.numel *= sizes[i];
  if (facts_.numel > 0) check_torch(aoti_torch_get_data_ptr(handle_, &facts_.data));
}

AtenTensorHandle Tensor::release() {
  AtenTensorHandle handle = handle_;
  if (!owns_) check_torch(aoti_torch_new_tensor_handle(handle_, &handle));
  handle_ = nullptr;
  owns_ = false;
  return handle;
}

bool Tensor::is_contiguous() const {
  int64_t expected = 1;
  for (int64_t i = facts_.dim - 1; i >= 0; --i) {
    if (facts_.sizes[i] != 1 && facts_.strides[i] != expected) return facts_.numel == 0;
    expected *= facts_.sizes[i];
  }
  return true;
}

Tensor Tensor::contiguous() const {
  if (is_contiguous()) return borrow();
  StableIValue stack[] = {shared(*this), value_of(aoti_torch_memory_format_contiguous_format())};
  call("aten::contiguous", "", stack);
  return first_result(stack);
}

Tensor Tensor::reinterpret(const Sizes& sizes, const Sizes& strides, int64_t offset) const {
  AtenTensorHandle handle;
  check_torch(
      aoti_torch__reinterpret_tensor(handle_, sizes.count, sizes.values, strides.values, offset, &handle));
  return Tensor(handle);
}

Tensor Tensor::narrow(int dim, int64_t start, int64_t length) const {
  Sizes part(sizes());
  part.values[dim] = length;
  return reinterpret(part, Sizes(std::span(facts_.strides, static_cast<size_t>(facts_.dim))),
                     start * facts_.strides[dim]);
}

Tensor Tensor::view(const Sizes& sizes) const { return reinterpret(sizes, contiguous_strides(sizes), 0); }

Tensor Tensor::flatten_steps() const {
  // The stride of a dimension of size 1 may be any number.
  const int64_t row = facts_.sizes[1] == 1 ? facts_.strides[0] : facts_.strides[1];
  return reinterpret({facts_.sizes[0] * facts_.sizes[1], facts_.sizes[2]}, {row, facts_.strides[2]}, 0);
}

Tensor Tensor::transpose() const {
  return reinterpret({facts_.sizes[1], facts_.sizes[0]}, {facts_.strides[1], facts_.strides[0]}, 0);
}

Tensor Tensor::to(Dtype dtype) const {
  if (dtype == facts_.dtype) return borrow();
  Tensor converted = empty(Sizes(sizes()), dtype, facts_.device);
  copy_to(converted, *this);
  return converted;
}

Tensor empty(const Sizes& sizes, Dtype dtype, Device device) {
  AtenTensorHandle handle;
  const AOTITorchError error =
      aoti_torch_empty_strided(sizes.count, sizes.values, contiguous_strides(sizes).values, code_of(dtype),
                               device.type, device.index, &handle);
  if (error != AOTI_TORCH_SUCCESS) [[unlikely]]
    throw std::bad_alloc();
  return Tensor(handle);
}

Tensor mm(const Tensor& a, const Tensor& b) {
  StableIValue stack[] = {shared(a), shared(b)};
  call("aten::mm", "", stack);
  return first_result(stack);
}

void mm_out(Tensor& out, const Tensor& a, const Tensor& b) {
  StableIValue stack[] = {shared(a), shared(b), shared(out)};
  call("aten::mm", "out", stack);
  first_result(stack);
}

Tensor sum_rows(const Tensor& t) {
  StableListHandle dims;
  check_torch(torch_new_list_reserve_size(1, &dims));
  check_torch(torch_list_push_back(dims, value_of(0)));
  // torch frees what an optional argument points to.
  auto* given = new StableIValue(reinterpret_cast<StableIValue>(dims));
  StableIValue stack[] = {shared(t), reinterpret_cast<StableIValue>(given), value_of(true), 0};
  call("aten::sum", "dim_IntList", stack);
  return first_result(stack);
}

double sum(const Tensor& t) {
  StableIValue stack[] = {shared(t), 0};
  call("aten::sum", "", stack);
  return *first_result(stack).to(Dtype::float64).data<double>();
}

void zero(const Tensor& t) { check_torch(aoti_torch_zero_(t.handle())); }

void copy_to(Tensor& to, const Tensor& from) {
  check_torch(aoti_torch_copy_(to.handle(), from.handle(), /*non_blocking=*/0));
}

}  // namespace fastrnn
