// Which driver computes a layer: the one that FASTRNN_CUDA_DRIVER names; or the one that was measured to
// be faster than the step driver (measured.h); or the step driver, which serves every problem.
#pragma once

#include <cstdlib>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>

#include "cuda/drivers.h"
#include "cuda/measured.h"

namespace fastrnn::cuda {

template <class Storage>
const Driver<Storage>* find_driver(std::string_view name) {
  for (const Driver<Storage>* driver : Drivers<Storage>::all()) {
    if (name == driver->name) return driver;
  }
  return nullptr;
}

// What FASTRNN_CUDA_DRIVER names, or nothing.
inline std::string_view asked_driver() {
  const char* setting = std::getenv("FASTRNN_CUDA_DRIVER");
  if (!setting || !*setting) return {};
  if (!find_driver<float>(setting)) {
    std::string names;
    for (const auto* driver : Drivers<float>::all())
      names += (names.empty() ? "" : ", ") + std::string(driver->name);
    throw std::runtime_error("fastrnn: FASTRNN_CUDA_DRIVER=" + std::string(setting) +
                             " names no driver; there are: " + names);
  }
  return setting;
}

template <class Storage>
struct Choice {
  const Driver<Storage>* driver;
  std::string_view asked;         // what FASTRNN_CUDA_DRIVER names, or nothing
  const Measured* row = nullptr;  // by which the driver was chosen, or null

  std::string reason() const {
    std::ostringstream text;
    if (asked == driver->name) {
      text << "FASTRNN_CUDA_DRIVER asks for it";
    } else if (!asked.empty()) {
      text << "FASTRNN_CUDA_DRIVER asks for " << asked << ", which does not serve this";
    } else if (row) {
      text << "measured at least " << row->ratio << " times as fast as step on sm_" << row->arch << " at H "
           << row->min_H << ".." << row->max_H << ", B " << row->min_B << ".." << row->max_B;
    } else {
      text << "no other was measured to be faster here";
    }
    return text.str();
  }
};

template <class Storage>
Choice<Storage> choose_driver(const Problem& p, std::span<const Measured> table = measured) {
  const std::string_view asked = asked_driver();
  if (!asked.empty()) {
    const Driver<Storage>* driver = find_driver<Storage>(asked);
    return {driver && driver->serves(p) ? driver : &Drivers<Storage>::step, asked};
  }
  if (const Measured* row = find_measured(table, p)) {
    const Driver<Storage>* driver = find_driver<Storage>(row->driver);
    if (driver && driver->serves(p)) return {driver, {}, row};
  }
  return {&Drivers<Storage>::step, {}};
}

}  // namespace fastrnn::cuda
