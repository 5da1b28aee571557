// How a compiled kernel library is called: the one function it exports, and the table of kernels that a generated trailer defines:
//
//   #include "ropeway_runtime.h"
//   ROPEWAY_KERNELS(ROPEWAY_KERNEL(first), ROPEWAY_KERNEL(second))
#pragma once
#include "kernel_operator.h"

extern "C" {

struct ropeway_host {
  void *context;
  // The host address that backs a range of device memory, or null if the range is not wholly inside one live allocation.
  uint8_t *(*translate)(void *context, uint64_t device_address, uint64_t bytes, int write);
  void (*report)(void *context, const char *text);
  uint64_t seed;
};

// Arguments are laid out as the ABI does: each in its natural size and alignment, in order; `bytes` is their size without padding at the end.
struct ropeway_kernel {
  const char *name;
  void (*thunk)(const void *arguments);
  size_t bytes;
};

// Ends with an entry whose name is null.
extern const struct ropeway_kernel ropeway_kernels[];

__attribute__((visibility("default"))) const struct ropeway_kernel *ropeway_kernel_table();
__attribute__((visibility("default"))) int ropeway_launch(const char *kernel, uint32_t num_blocks, const void *args, size_t args_size,
                                                          const struct ropeway_host *host);
}

namespace ropeway {

template <class... Arguments> struct Layout {
  static constexpr size_t COUNT = sizeof...(Arguments);
  size_t offsets[COUNT + 1] = {}, bytes = 0;
  constexpr Layout() {
    constexpr size_t sizes[] = {sizeof(Arguments)..., 0}, alignments[] = {alignof(Arguments)..., 1};
    for (size_t i = 0; i < COUNT; i++) {
      offsets[i] = (bytes + alignments[i] - 1) / alignments[i] * alignments[i];
      bytes = offsets[i] + sizes[i];
    }
  }
};

template <class T> T argument_at(const void *arguments, size_t offset) {
  T value;
  std::memcpy(&value, static_cast<const char *>(arguments) + offset, sizeof value);
  return value;
}

template <auto kernel, class... Arguments, size_t... index> void call(const void *arguments, std::index_sequence<index...>) {
  constexpr Layout<Arguments...> layout;
  kernel(argument_at<Arguments>(arguments, layout.offsets[index])...);
}

template <auto kernel, class... Arguments> constexpr ropeway_kernel entry_of(const char *name, void (*)(Arguments...)) {
  static_assert((std::is_trivially_copyable<Arguments>::value && ...), "arguments of a kernel are copied as bytes");
  return {name, [](const void *arguments) { call<kernel, Arguments...>(arguments, std::index_sequence_for<Arguments...>()); },
          Layout<Arguments...>().bytes};
}

}  // namespace ropeway

#define ROPEWAY_KERNEL(name) ropeway::entry_of<&name>(#name, &name)
#define ROPEWAY_KERNELS(...) extern "C" const struct ropeway_kernel ropeway_kernels[] = {__VA_ARGS__, {nullptr, nullptr, 0}};
