// Calls kernels of every target for the tests (program.py): a program, so that a fault is an error of one
// call, and so that the same tests run under an emulator of another processor.
//
// Requests come from standard input, replies go to standard output. A request is a line
//
//     TARGET TABLE KERNEL COUNT NUMBERS.. COUNT SIZES..
//
// and the bytes of arrays of these sizes; a size of -1 is a null pointer. The reply is a line "ok" and the
// arrays' bytes after the call, "ok NUMBERS.." to a question, or "error MESSAGE".
#include <iostream>
#include <memory>
#include <sstream>
#include <vector>

#include "cpu/dispatch.h"
#include "guarded.h"
#include "math_functions.h"

namespace fastrnn {

#define DECLARE_MATH(name)                   \
  namespace name {                           \
  extern const MathFunctions math_functions; \
  }
FASTRNN_TARGETS(DECLARE_MATH)

#ifdef __x86_64__
namespace avx512_amx_emulated {
extern const Target target;
}
#endif

namespace {

struct Request {
  std::string target, table, kernel;
  std::vector<int64_t> numbers, sizes;
  std::vector<std::string> arrays;
};

// A call's numbers and arrays, taken one after another.
class Arguments {
 public:
  Arguments(const Request& request, bool at_end) : numbers_(request.numbers) {
    for (size_t i = 0; i < request.sizes.size(); ++i) {
      arrays_.push_back(request.sizes[i] < 0 ? nullptr
                                             : std::make_unique<Guarded>(request.arrays[i], at_end));
    }
  }

  operator int() { return static_cast<int>(numbers_.at(next_number_++)); }
  operator int64_t() { return numbers_.at(next_number_++); }
  operator bool() { return numbers_.at(next_number_++) != 0; }
  template <class T>
  operator T*() {
    const auto& array = arrays_.at(next_array_++);
    return array ? reinterpret_cast<T*>(array->data()) : nullptr;
  }

  std::string bytes() const {
    std::string all;
    for (const auto& array : arrays_) {
      if (array == nullptr) continue;
      if (!array->surroundings_untouched()) throw std::runtime_error("wrote outside an array");
      all += array->bytes();
    }
    return all;
  }

 private:
  const std::vector<int64_t>& numbers_;
  std::vector<std::unique_ptr<Guarded>> arrays_;
  size_t next_number_ = 0, next_array_ = 0;
};

// Every kernel takes its numbers and then its arrays in the order of its parameters or fields. Rows of a
// product are one array and the distance between rows.
template <class Operand>
std::vector<const Operand*> row_pointers(int rows, int64_t row, const Operand* first) {
  std::vector<const Operand*> pointers(rows);
  for (int m = 0; m < rows; ++m) pointers[m] = first + m * row;
  return pointers;
}

template <class Kernels>
void call_product(const Kernels& k, const std::string& kernel, Arguments& next) {
  const int vectors = kernel == "multiply" ? int(next) : 0;
  const int rows = next;
  const int64_t terms = next, row = next;
  const typename Kernels::Operand* first;
  if (kernel == "multiply") {
    const int64_t panel_row = next;
    const bool accumulate = next;
    const auto a = row_pointers(rows, row, first = next);
    const typename Kernels::Panel* panel = next;
    k.multiply[vectors][rows](terms, a.data(), panel, panel_row, next, accumulate);
  } else {
    const int64_t w_row = next;
    const int gates = next;
    const int64_t H = next, units = next, block = next;
    const auto a = row_pointers(rows, row, first = next);
    const typename Kernels::Storage* w = next;
    k.multiply_unpacked(rows, terms, a.data(), w, w_row, gates, H, units, block, next);
  }
}

template <class Kernels>
void call_cell(const Kernels& k, const std::string& kernel, Arguments& next) {
  const int cell = next;
  if (kernel == "forward") {
    CellForward<typename Kernels::Storage, typename Kernels::CellOperand, typename Kernels::Compute> t{};
    t.rows = next;
    for (int64_t* number : {&t.units, &t.block, &t.H, &t.acc_row, &t.pre_row, &t.h_row, &t.operand_row,
                            &t.c_row, &t.y_row, &t.c_out_row, &t.slots_row}) {
      *number = next;
    }
    t.acc = next, t.pre = next, t.b_hh = next;
    typename Kernels::Compute* const h_prev = next;
    t.h_prev = h_prev;
    t.h = next;
    if (t.h == nullptr) t.h = h_prev;
    t.operand = next, t.c = next, t.y = next, t.c_out = next, t.slots = next;
    k.forward[cell](t);
  } else {
    CellBackward<typename Kernels::Storage, typename Kernels::CellOperand, typename Kernels::Compute> t{};
    t.rows = next;
    for (int64_t* number : {&t.units, &t.H, &t.acc_row, &t.carry_h_row, &t.carry_c_row, &t.dy_row,
                            &t.dc_row, &t.slots_row, &t.h_row, &t.h_prev_row, &t.c_state_row, &t.c_prev_row,
                            &t.output_row, &t.d_slots_row, &t.operand_row, &t.operand_slot}) {
      *number = next;
    }
    t.acc = next, t.carry_h = next, t.carry_c = next, t.dy = next, t.dc = next, t.slots = next;
    t.h = next, t.h_prev = next, t.c = next, t.c_prev = next, t.output = next, t.d_slots = next;
    t.operand = next;
    k.backward[cell](t);
  }
}

template <class Kernels>
void call(const Kernels& k, const std::string& kernel, Arguments& next) {
  if (kernel == "multiply" || kernel == "multiply_unpacked") return call_product(k, kernel, next);
  if (kernel == "forward" || kernel == "backward") return call_cell(k, kernel, next);
  if (kernel == "pack_transposed") {
    const int64_t terms = next, w_row = next;
    const int gates = next;
    const int64_t H = next, units = next, block = next;
    const typename Kernels::Storage* w = next;
    return k.pack_transposed(terms, w, w_row, gates, H, units, block, next);
  }
  if (kernel == "add_bias") {
    const int rows = next, gates = next;
    const int64_t units = next, block = next, H = next, pre_row = next;
    const typename Kernels::Compute *acc = next, *bias = next;
    return k.add_bias(rows, gates, units, block, H, acc, bias, next, pre_row);
  }
  const int64_t n = next;
  if (kernel == "pack") {
    const int64_t w_row = next, units = next, block = next;
    const typename Kernels::Storage* w = next;
    return k.pack(n, w, w_row, units, block, next);
  }
  if (kernel == "sum_rows") {
    const int64_t columns = next, row = next;
    const typename Kernels::Storage* from = next;
    return k.sum_rows(n, columns, from, row, next);
  }
  const auto convert = [&](auto* kernel_, auto* from) {
    from = next;
    kernel_(n, from, next);
  };
  const typename Kernels::Storage* stored = nullptr;
  const typename Kernels::Compute* computed = nullptr;
  if (kernel == "to_compute") return convert(k.to_compute, stored);
  if (kernel == "to_storage") return convert(k.to_storage, computed);
  if (kernel == "to_operand") return convert(k.to_operand, stored);
  if (kernel == "round_to_operand") return convert(k.round_to_operand, computed);
  if (kernel == "quantize") return convert(k.quantize, computed);
  throw std::runtime_error("there is no kernel " + kernel);
}

const Target& find_target(const std::string& name) {
#ifdef __x86_64__
  if (name == "avx512_amx_emulated") {
    usable_target("avx512_bf16");
    return avx512_amx_emulated::target;
  }
#endif
  return usable_target(name);
}

// Calls body(kernels) with a target's table.
template <class Body>
void with_table(const Request& request, Body body) {
  const Target& target = find_target(request.target);
  const auto is_it = [&](const char* name, const auto* kernels) {
    if (request.table != name) return false;
    if (kernels == nullptr) throw std::runtime_error(request.target + " has no table " + name);
    body(*kernels);
    return true;
  };
  if (!(is_it("f32", target.f32) || is_it("f64", target.f64) || is_it("bf16", target.bf16) ||
        is_it("f16", target.f16) || is_it("bf16_dot", target.bf16_dot) ||
        is_it("f32_bf16_dot", target.f32_bf16_dot) || is_it("f32_split", target.f32_split) ||
        is_it("f32_int8", target.f32_int8))) {
    throw std::runtime_error("there is no table " + request.table);
  }
}

// Table "math", kernel "exp", ..; numbers: n, vector code or scalar or approximate, double or float,
// function.
void call_math(const Request& request, Arguments& next) {
  find_target(request.target);
  const int64_t n = next;
  const int form = next, is_double = next, function = next;
#define CALL_MATH(name)                                                                 \
  if (request.target == #name && is_double) {                                           \
    const double* x = next;                                                             \
    name::math_functions.of_double[form][function](n, x, next);                         \
  } else if (request.target == #name) {                                                 \
    const float* x = next;                                                              \
    const MathFunctions& functions = name::math_functions;                              \
    const auto* of_form = form == 2 ? functions.approximate : functions.of_float[form]; \
    of_form[function](n, x, next);                                                      \
  }
  FASTRNN_TARGETS(CALL_MATH)
}

// The arrays after a call, which must not depend on what surrounds them.
std::string run(const Request& request) {
  std::string results[2];
  for (int at_end : {0, 1}) {
    Arguments arguments(request, at_end != 0);
    if (request.table == "math") {
      call_math(request, arguments);
    } else {
      with_table(request, [&](const auto& kernels) { call(kernels, request.kernel, arguments); });
    }
    results[at_end] = arguments.bytes();
  }
  if (results[0] != results[1]) throw std::runtime_error("read outside an array");
  return results[0];
}

void answer(const Request& request) {
  if (request.kernel == "usable") {
    try {
      find_target(request.target);
      std::cout << "ok 1\n";
    } catch (const std::runtime_error&) {
      std::cout << "ok 0\n";
    }
  } else if (request.kernel == "facts") {
    with_table(request, [&](const auto& k) {
      std::cout << "ok " << k.lanes << ' ' << k.k_step << ' ' << k.rows_3 << ' ' << k.rows_4 << '\n';
    });
  } else {
    const std::string bytes = run(request);
    std::cout << "ok\n" << bytes;
  }
}

std::vector<int64_t> read_numbers(std::istream& line) {
  size_t count = 0;
  line >> count;
  std::vector<int64_t> numbers(count);
  for (int64_t& number : numbers) line >> number;
  return numbers;
}

}  // namespace
}  // namespace fastrnn

int main() {
  using namespace fastrnn;
  for (std::string text; std::getline(std::cin, text);) {
    std::istringstream line(text);
    Request request;
    line >> request.target >> request.table >> request.kernel;
    request.numbers = read_numbers(line);
    request.sizes = read_numbers(line);
    for (int64_t size : request.sizes) {
      request.arrays.emplace_back(std::max<int64_t>(size, 0), '\0');
      std::cin.read(request.arrays.back().data(), request.arrays.back().size());
    }
    try {
      answer(request);
    } catch (const std::runtime_error& error) {
      std::cout << "error " << error.what() << '\n';
    }
    std::cout.flush();
  }
}
