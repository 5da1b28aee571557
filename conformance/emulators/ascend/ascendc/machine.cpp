// What every kernel library is linked with: the machine, which its kernels run on, and the function that launches them.
#include "pipes.h"
#include "ropeway_runtime.h"

namespace ropeway {

Core &core() { return *running; }

Work Work::mmad(uint64_t m, uint64_t n, uint64_t k, uint64_t element_bytes) {
  uint64_t deep = element_bytes == 1 ? 32 : element_bytes == 2 ? 16 : 4;
  Work work{CUBE, double((m + 15) / 16 * ((n + 15) / 16) * ((k + deep - 1) / deep))};
  work.macs = double(m) * double(n) * double(k);
  return work;
}

bool Work::slow(const char *name) {
  for (const char *known : {"Exp", "Ln", "Sqrt", "Rsqrt", "Div", "Reciprocal", "Sin", "Cos", "Tanh", "Power"})
    if (!std::strcmp(known, name)) return true;
  return false;
}

void unfit(int64_t given, int64_t low, int64_t high) {
  running->fault("a parameter of the next instruction is " + std::to_string(given) + ", which is not in " + std::to_string(low) + " to " + std::to_string(high));
}
void no_way(Memory to, Memory from) { running->fault(std::string("there is no way from ") + MEMORY_NAMES[from] + " to " + MEMORY_NAMES[to]); }
void no_buffer(At at) { running->fault("AllocTensor at line " + std::to_string(at.line) + ": each buffer of the queue is in use"); }
void memory_full(Memory memory, uint64_t used) {
  running->fault(std::string("InitBuffer: ") + MEMORY_NAMES[memory] + " is full: " + std::to_string(used) + " bytes of " + std::to_string(MEMORY_BYTES[memory]));
}
void aligned(const Place &place, uint64_t bytes, const char *what) {
  if (place.address % bytes == 0) return;
  running->fault(std::string("misaligned: ") + what + " begins at " + std::to_string(place.address) + ", not at a multiple of " + std::to_string(bytes));
}
void in(const Place &place, Memory memory, const char *what) {
  if (place.memory != memory) running->fault(std::string(what) + " is in " + MEMORY_NAMES[place.memory] + ", and must be in " + MEMORY_NAMES[memory]);
}
uint64_t bytes_of(Memory memory) { return MEMORY_BYTES[memory]; }

// sums[m][n] += a[m][k] b[n][k]: see cube.h.
template <class Product, class Sum>
void multiply(const std::vector<Product> &a, const std::vector<Product> &b, uint64_t m, uint64_t n, uint64_t k, uint64_t k0, std::vector<Sum> &sums) {
  std::vector<Product> turned(b.size()), line(n);
  for (uint64_t j = 0; j < n; j++)
    for (uint64_t e = 0; e < k; e++) turned[e * n + j] = b[j * k + e];
  for (uint64_t i = 0; i < m; i++)
    for (uint64_t first = 0; first < k; first += k0) {
      std::fill(line.begin(), line.end(), Product(0));
      for (uint64_t e = first; e < std::min(k, first + k0); e++) {
        const Product factor = a[i * k + e], *__restrict row = &turned[e * n];
        Product *__restrict to = line.data();
        for (uint64_t j = 0; j < n; j++) to[j] += factor * row[j];
      }
      for (uint64_t j = 0; j < n; j++) sums[i * n + j] += Sum(line[j]);
    }
}

template void multiply(const std::vector<double> &, const std::vector<double> &, uint64_t, uint64_t, uint64_t, uint64_t, std::vector<float> &);
template void multiply(const std::vector<int32_t> &, const std::vector<int32_t> &, uint64_t, uint64_t, uint64_t, uint64_t, std::vector<int32_t> &);

// Filled by KERNEL_TASK_TYPE_DEFAULT; the linker names the ends of the section, if any kernel filled it.
extern "C" __attribute__((weak, visibility("hidden"))) TaskType __start_ropeway_tasks[], __stop_ropeway_tasks[];

KernelMetaType type_of(const char *kernel) {
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
