// How a compiled kernel library is called: the one function it exports, and the table of kernels that a generated trailer defines:
//
//   #include "ropeway_runtime.h"
//   ROPEWAY_KERNELS(ROPEWAY_KERNEL(first), ROPEWAY_KERNEL(second))
#pragma once
#include <cstddef>
#include <cstdint>
#include <tuple>
#include <utility>

#include "kernel_operator.h"

extern "C" {

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

template <auto kernel, class... Arguments, size_t... index>
void call(const void *arguments, std::index_sequence<index...>) {
  constexpr Layout<Arguments...> layout;
  std::tuple<Arguments...> values;
  (std::memcpy(&std::get<index>(values), static_cast<const char *>(arguments) + layout.offsets[index], sizeof(Arguments)), ...);
  kernel(std::get<index>(values)...);
}

template <auto kernel, class... Arguments> constexpr ropeway_kernel entry_of(const char *name, void (*)(Arguments...)) {
  static_assert((std::is_trivially_copyable<Arguments>::value && ...), "arguments of a kernel are copied as bytes");
  return {name, [](const void *arguments) { call<kernel, Arguments...>(arguments, std::index_sequence_for<Arguments...>()); },
          Layout<Arguments...>().bytes};
}

}  // namespace ropeway

#define ROPEWAY_KERNEL(name) ropeway::entry_of<&name>(#name, &name)
#define ROPEWAY_KERNELS(...) extern "C" const struct ropeway_kernel ropeway_kernels[] = {__VA_ARGS__, {nullptr, nullptr, 0}};

namespace ropeway {

// Filled by KERNEL_TASK_TYPE_DEFAULT; the linker names the ends of the section, if any kernel filled it.
extern "C" __attribute__((weak, visibility("hidden"))) TaskType __start_ropeway_tasks[], __stop_ropeway_tasks[];

inline KernelMetaType type_of(const char *kernel) {
  for (TaskType *task = __start_ropeway_tasks; task < __stop_ropeway_tasks; task++)
    if (!std::strcmp(task->kernel, kernel)) return task->type;
  return KERNEL_TYPE_NOT_SAID;
}

}  // namespace ropeway

const struct ropeway_kernel *ropeway_kernel_table() { return ropeway_kernels; }

int ropeway_launch(const char *kernel, uint32_t num_blocks, const void *args, size_t args_size, const struct ropeway_host *host) {
  auto refuse = [&](const std::string &what) {
    host->report(host->context, (std::string(kernel) + ": " + what).c_str());
    return 507015;
  };
  const ropeway_kernel *found = ropeway_kernels;
  while (found->name && std::strcmp(found->name, kernel)) found++;
  if (!found->name) return refuse("the library has no such kernel");
  if (args_size < found->bytes) return refuse("its arguments are " + std::to_string(found->bytes) + " bytes, of which " + std::to_string(args_size) + " were given");
  KernelMetaType type = ropeway::type_of(kernel);
  if (type == KERNEL_TYPE_NOT_SAID) return refuse("its task type is not said: KERNEL_TASK_TYPE_DEFAULT is missing");
  if (!num_blocks) return refuse("a launch of no blocks");
  return ropeway::Launch(*host, kernel, found->thunk, args, num_blocks, type).run();
}
