// The tests' side of a launch: device memory at addresses of its own, kernels built and loaded as the run-time compiler does, and what was reported.
#pragma once
#include <dlfcn.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "../numbers.h"

struct ropeway_host {
  void *context;
  uint8_t *(*translate)(void *context, uint64_t device_address, uint64_t bytes, int write);
  void (*report)(void *context, const char *text);
  uint64_t seed;
};

inline int failures = 0;
#define CHECK(holds, ...)                                       \
  do {                                                          \
    if (!(holds)) {                                             \
      std::printf("%s:%d: FAILED: ", __FILE__, __LINE__);       \
      std::printf(__VA_ARGS__), std::printf("\n"), failures++; \
    }                                                           \
  } while (0)

inline std::string contents(const std::string &path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

class Device {
  std::map<uint64_t, std::vector<uint8_t>> allocations;
  uint64_t next = 0x120000000000;

 public:
  std::string reported;
  uint64_t allocate(uint64_t bytes, uint8_t fill = 0xff) {
    uint64_t address = next;
    next += (bytes + 511) / 512 * 512 + 4096;
    allocations[address].assign(bytes, fill);
    return address;
  }
  template <class T> uint64_t upload(const std::vector<T> &values) {
    uint64_t address = allocate(values.size() * sizeof(T));
    std::memcpy(allocations[address].data(), values.data(), values.size() * sizeof(T));
    return address;
  }
  template <class T> std::vector<T> download(uint64_t address) const {
    auto &bytes = allocations.at(address);
    std::vector<T> values(bytes.size() / sizeof(T));
    std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
    return values;
  }
  static uint8_t *translate(void *self, uint64_t address, uint64_t bytes, int) {
    auto &allocations = static_cast<Device *>(self)->allocations;
    auto after = allocations.upper_bound(address);
    if (after == allocations.begin()) return nullptr;
    auto &[start, held] = *--after;
    return address + bytes <= start + held.size() ? held.data() + (address - start) : nullptr;
  }
  static void report(void *self, const char *text) { static_cast<Device *>(self)->reported = text; }
};

class Library {
  int (*launch)(const char *, uint32_t, const void *, size_t, const ropeway_host *) = nullptr;

 public:
  std::string source;

  // Builds `path` with `defines`, as the run-time compiler does: with a trailer that names its kernels.
  Library(const std::string &path, const std::string &defines) : source(contents(path)) {
    static int number = 0;
    std::string stem = std::string(std::getenv("ROPEWAY_TEST_FOLDER")) + "/kernel" + std::to_string(number++), kernels;
    for (size_t at = 0; (at = source.find("__global__ __aicore__ void ", at)) != std::string::npos;) {
      at += std::strlen("__global__ __aicore__ void ");
      kernels += (kernels.empty() ? "" : ", ") + ("ROPEWAY_KERNEL(" + source.substr(at, source.find('(', at) - at) + ")");
    }
    std::ofstream(stem + ".cpp") << source << "\n#include \"ropeway_runtime.h\"\nROPEWAY_KERNELS(" << kernels << ")\n";
    std::string command = "g++ -std=c++17 -O1 -Wall -shared -fPIC -fvisibility=hidden -Wl,--no-undefined -I" ASCENDC_FOLDER " " + defines + " " + stem + ".cpp " + std::getenv("ROPEWAY_TEST_FOLDER") + "/machine.o -o " + stem + ".so";
    if (std::system(command.c_str())) {
      CHECK(false, "%s %s does not compile", path.c_str(), defines.c_str());
      return;
    }
    void *loaded = dlopen((stem + ".so").c_str(), RTLD_NOW | RTLD_LOCAL);
    CHECK(loaded, "%s", dlerror());
    if (loaded) launch = reinterpret_cast<decltype(launch)>(dlsym(loaded, "ropeway_launch"));
  }

  template <class... Arguments> int run(Device &device, const char *kernel, uint32_t blocks, uint64_t seed, Arguments... arguments) const {
    std::vector<uint8_t> bytes;
    [[maybe_unused]] auto add = [&](auto argument) {
      bytes.resize((bytes.size() + sizeof argument - 1) / sizeof argument * sizeof argument + sizeof argument);
      std::memcpy(bytes.data() + bytes.size() - sizeof argument, &argument, sizeof argument);
    };
    (add(arguments), ...);
    ropeway_host host{&device, Device::translate, Device::report, seed};
    return launch ? launch(kernel, blocks, bytes.data(), bytes.size(), &host) : -1;
  }

  // The lines that set or wait for flags, or are barriers, from the line that has `from` to the one that has `to`.
  std::vector<int> synchronising(const std::string &from, const std::string &to) const {
    std::vector<int> lines;
    std::stringstream text(source);
    std::string line;
    bool inside = false;
    for (int number = 1; std::getline(text, line); number++) {
      if (line.find(from) != std::string::npos) inside = true;
      else if (!to.empty() && line.find(to) != std::string::npos) inside = false;
      for (const char *name : {"SetFlag<", "WaitFlag<", "CrossCoreWaitFlag(", "PipeBarrier<"})
        if (inside && line.find(name) != std::string::npos) {
          lines.push_back(number);
          break;
        }
    }
    return lines;
  }
};

struct Dropped {
  explicit Dropped(const std::string &lines) { setenv("ROPEWAY_EMULATED_CANN_DROP", lines.c_str(), 1); }
  ~Dropped() { unsetenv("ROPEWAY_EMULATED_CANN_DROP"); }
};
struct WithoutHazards {
  WithoutHazards() { setenv("ROPEWAY_EMULATED_CANN_NO_HAZARDS", "1", 1); }
  ~WithoutHazards() { unsetenv("ROPEWAY_EMULATED_CANN_NO_HAZARDS"); }
};

// Small whole numbers, so that every sum is exact in every type.
template <class T> std::vector<T> whole_numbers(size_t count, uint32_t seed, int range = 4) {
  std::vector<T> values(count);
  for (T &value : values) {
    seed = seed * 1664525 + 1013904223;
    value = T(float(int(seed >> 16) % (2 * range + 1) - range));
  }
  return values;
}
