// Registration of ops with torch's dispatcher.
#pragma once

#include <torch/headeronly/version.h>

#include "torch/stable/boxed.h"

namespace fastrnn {

// Held for the life of the process: torch keeps what was registered as long as the library object is there.
class Library {
 public:
  static Library definitions(const char* space = "fastrnn") {
    Library library;
    check_torch(aoti_torch_library_init_def(space, __FILE__, __LINE__, &library.handle_));
    return library;
  }
  // key: "CPU", "CUDA", or "CompositeExplicitAutograd" for every backend.
  static Library implementations(const char* key, const char* space = "fastrnn") {
    Library library;
    check_torch(aoti_torch_library_init_impl(space, key, __FILE__, __LINE__, &library.handle_));
    return library;
  }
  void define(const char* schema) { check_torch(aoti_torch_library_def(handle_, schema)); }
  template <auto op>
  void implement(const char* name) {
    check_torch(torch_library_impl(handle_, name, boxed<op>, TORCH_ABI_VERSION));
  }

 private:
  TorchLibraryHandle handle_ = nullptr;
};

}  // namespace fastrnn
