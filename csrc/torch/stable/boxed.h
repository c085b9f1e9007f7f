// An op as torch calls it: its arguments on a stack of 64-bit values, which its results replace.
//
// All arguments are taken over before any is looked at, so that an error leaks none.
#pragma once

#include <array>
#include <cstring>
#include <tuple>
#include <utility>
#include <vector>

#include "torch/stable/tensor.h"

// From torch 2.13 on; before it, plain delete.
extern "C" __attribute__((weak)) AOTITorchError torch_delete_stable_ivalue(StableIValue* value);

namespace fastrnn {

template <class T>
T bits_of(StableIValue value) {
  static_assert(sizeof(T) <= sizeof(value));
  T bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

// An argument of each type: the constructor takes it over and cannot fail, read() looks at it.
template <class T>
struct Argument {
  T value;
  explicit Argument(StableIValue given) noexcept : value(bits_of<T>(given)) {}
  const T& read() { return value; }
};

template <>
struct Argument<Tensor> {
  AtenTensorHandle handle;
  Tensor value;
  explicit Argument(StableIValue given) noexcept : handle(bits_of<AtenTensorHandle>(given)) {}
  Argument(const Argument&) = delete;
  ~Argument() {
    if (handle) aoti_torch_delete_tensor_object(handle);
  }
  const Tensor& read() {
    value = Tensor(std::exchange(handle, nullptr));
    return value;
  }
};

template <>
struct Argument<OptionalTensor> {
  AtenTensorHandle handle = nullptr;
  OptionalTensor value;
  explicit Argument(StableIValue given) noexcept {
    auto* boxed = bits_of<StableIValue*>(given);
    if (boxed == nullptr) return;
    handle = bits_of<AtenTensorHandle>(*boxed);
    if (torch_delete_stable_ivalue != nullptr) {
      torch_delete_stable_ivalue(boxed);
    } else {
      delete boxed;
    }
  }
  Argument(const Argument&) = delete;
  ~Argument() {
    if (handle) aoti_torch_delete_tensor_object(handle);
  }
  const OptionalTensor& read() {
    if (handle) value = OptionalTensor(std::exchange(handle, nullptr));
    return value;
  }
};

template <>
struct Argument<std::string_view> {
  StringHandle handle;
  explicit Argument(StableIValue given) noexcept : handle(bits_of<StringHandle>(given)) {}
  Argument(const Argument&) = delete;
  ~Argument() { torch_delete_string(handle); }
  std::string_view read() {
    const char* characters;
    size_t length;
    check_torch(torch_string_c_str(handle, &characters));
    check_torch(torch_string_length(handle, &length));
    return {characters, length};
  }
};

// A list, read item by item.
class ListArgument {
 public:
  explicit ListArgument(StableIValue given) noexcept : handle_(bits_of<StableListHandle>(given)) {}
  ListArgument(const ListArgument&) = delete;
  ~ListArgument() { torch_delete_list(handle_); }

 protected:
  size_t size() const {
    size_t size;
    check_torch(torch_list_size(handle_, &size));
    return size;
  }
  StableIValue item(size_t i) const {
    StableIValue item;
    check_torch(torch_list_get_item(handle_, i, &item));
    return item;
  }

 private:
  StableListHandle handle_;
};

template <>
struct Argument<std::vector<Tensor>> : ListArgument {
  std::vector<Tensor> values;
  using ListArgument::ListArgument;
  const std::vector<Tensor>& read() {
    const size_t n = size();
    values.reserve(n);
    for (size_t i = 0; i < n; ++i) values.emplace_back(bits_of<AtenTensorHandle>(item(i)));
    return values;
  }
};

template <size_t n>
struct Argument<std::array<bool, n>> : ListArgument {
  using ListArgument::ListArgument;
  std::array<bool, n> read() {
    std::array<bool, n> values;
    FASTRNN_CHECK_VALUE(size() == n, "fastrnn: got a list of ", int64_t(size()), ", expected ", int64_t(n));
    for (size_t i = 0; i < n; ++i) values[i] = bits_of<bool>(item(i));
    return values;
  }
};

inline StableIValue result(Tensor tensor) { return reinterpret_cast<StableIValue>(tensor.release()); }
inline StableIValue result(const std::string& string) {
  StringHandle handle;
  check_torch(torch_new_string_handle(string.data(), string.size(), &handle));
  return reinterpret_cast<StableIValue>(handle);
}

template <class... Results>
void put(StableIValue* stack, std::tuple<Results...> results) {
  std::apply([&](auto&... each) { ((*stack++ = result(std::move(each))), ...); }, results);
}
template <class Result>
void put(StableIValue* stack, Result each) {
  *stack = result(std::move(each));
}

template <class>
struct Boxing;

template <class Result, class... Arguments>
struct Boxing<Result (*)(Arguments...)> {
  template <auto op, size_t... i>
  static void call_with(StableIValue* stack, std::index_sequence<i...>) {
    [[maybe_unused]] std::tuple<Argument<std::remove_cvref_t<Arguments>>...> arguments(stack[i]...);
    put(stack, op(std::get<i>(arguments).read()...));
  }
  template <auto op>
  static void call(StableIValue* stack, uint64_t /*arguments*/, uint64_t /*results*/) {
    call_with<op>(stack, std::index_sequence_for<Arguments...>{});
  }
};

// What torch_library_impl() registers for a plain function over tensors, numbers and strings.
template <auto op>
constexpr void (*boxed)(StableIValue*, uint64_t, uint64_t) = &Boxing<decltype(op)>::template call<op>;

}  // namespace fastrnn
