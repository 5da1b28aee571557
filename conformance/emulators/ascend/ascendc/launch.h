// A launch: its blocks on the AI cores, what goes between cores, and global memory. Cores take turns as coroutines on the caller's thread.
#pragma once
#include <sys/mman.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <set>

#include "engine.h"
#include "ropeway_runtime.h"

namespace ropeway {

constexpr int CROSS_FLAGS = 16, CROSS_MODES = 3;
// What a cross-core flag's counter can hold.
constexpr size_t CROSS_COUNT = 15;

struct CrossFlag {
  std::deque<Clock> arrived[CROSS_MODES];  // set by this core, waiting for the others of its group
  std::deque<Clock> granted;
};

// The flags and barriers of a kernel, by where they stand: for tests that leave out each in its turn.
//
// ROPEWAY_EMULATED_CANN_DROP lists those that are left out: LINE or FILE:LINE, with anything between them; @PATH finds the list in a file, anew for each launch.
// ROPEWAY_EMULATED_CANN_LINES=PATH names a file to which a launch appends FILE:LINE of each that it came to.
class Marks {
  std::set<std::pair<std::string, int>> left_out;  // without a file: of any
  const char *const path = std::getenv("ROPEWAY_EMULATED_CANN_LINES");
  std::set<std::pair<const char *, int>> met;

  static std::string name_of(const char *file) {
    const char *last = std::strrchr(file, '/');
    return last ? last + 1 : file;
  }

 public:
  Marks() {
    const char *given = std::getenv("ROPEWAY_EMULATED_CANN_DROP");
    if (!given) return;
    std::string list = given;
    if (list[0] == '@') {
      std::ifstream file(list.substr(1));
      list.assign(std::istreambuf_iterator<char>(file), {});
    }
    auto in_name = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '.' || c == ':'; };
    for (size_t at = 0; at < list.size(); at++) {
      size_t end = at;
      while (end < list.size() && in_name(list[end])) end++;
      std::string word = list.substr(at, end - at);
      size_t colon = word.find(':');
      if (!word.empty()) left_out.insert({colon == word.npos ? "" : word.substr(0, colon), std::atoi(word.c_str() + (colon == word.npos ? 0 : colon + 1))});
      at = end;
    }
  }
  bool dropped(At at) {
    if (path) met.insert({at.file, at.line});
    return !left_out.empty() && (left_out.count({"", at.line}) || left_out.count({name_of(at.file), at.line}));
  }
  void tell() const {
    if (!path) return;
    std::ofstream file(path, std::ios::app);
    for (auto &[name, line] : met) file << name_of(name) << ':' << line << '\n';
  }
};

struct Launch {
  const ropeway_host &host;
  const char *kernel;
  void (*thunk)(const void *);
  const void *arguments;
  const uint32_t num_blocks;
  const KernelMetaType type;
  Random random;
  Cost cost;
  // How readily pipes run before S must wait for them: never, seldom, often, at once.
  const uint64_t eagerness;
  // For tests of the tests: without hazards, a missing wait shows only where it changes a result; flags and barriers of some lines are dropped.
  const bool hazards;
  Marks marks;
  Shadow global;
  std::vector<std::unique_ptr<Engine>> live;
  std::map<int, std::array<CrossFlag, CROSS_FLAGS>> cross;  // by core number
  ucontext_t scheduler;
  bool abandoned = false;
  std::unique_ptr<Fault> fault;
  bool faulted_on_cube = false;

  Launch(const ropeway_host &host, const char *kernel, void (*thunk)(const void *), const void *arguments, uint32_t num_blocks, KernelMetaType type)
      : host(host), kernel(kernel), thunk(thunk), arguments(arguments), num_blocks(num_blocks), type(type), random(host.seed),
        eagerness(cost.only ? 3 : random.below(4)), hazards(!std::getenv("ROPEWAY_EMULATED_CANN_NO_HAZARDS")) {}

  bool mixed() const { return type == KERNEL_TYPE_MIX_AIC_1_1 || type == KERNEL_TYPE_MIX_AIC_1_2; }
  int vectors() const { return type == KERNEL_TYPE_MIX_AIC_1_2 ? 2 : 1; }
  int cores_of_a_block() const { return mixed() ? 1 + vectors() : 1; }
  uint32_t ai_cores() const { return cost.on ? cost.chip->ai_cores : AI_CORES; }
  uint32_t blocks_at_once() const { return type == KERNEL_TYPE_AIV_ONLY ? ai_cores() * VECTORS_OF_A_CORE : ai_cores(); }

  void begin(uint32_t block) {
    if (type != KERNEL_TYPE_AIV_ONLY) start(block, 0, true);
    if (type == KERNEL_TYPE_AIV_ONLY) start(block, 0, false);
    for (int sub = 0; mixed() && sub < vectors(); sub++) start(block, sub, false);
  }

  int run();
  void yield(Engine &from) {
    swapcontext(&from.context, &scheduler);
    if (abandoned) throw Abandoned{};
  }
  // A cross-core flag set by a core, with what was known there. It is granted once the whole group has set it.
  void cross_set(Engine &setter, int mode, int id, const Clock &clock);

 private:
  struct Stack {
    static constexpr size_t BYTES = 1 << 20;
    void *memory = mmap(nullptr, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    ~Stack() {
      if (memory != MAP_FAILED) munmap(memory, BYTES);
    }
  };
  std::map<int, std::unique_ptr<Stack>> stacks;  // by core number

  void start(uint32_t block, int sub, bool cube);
  void resume(Engine &core);
  void forget_done();
  void check_cross_flags();
  static void enter(unsigned high, unsigned low);
};

// The core whose kernel is running on this thread.
inline thread_local Engine *running = nullptr;

inline Engine::Engine(Launch &launch, int number, int block, int sub_block, bool cube)
    : Core(block, sub_block, cube, launch.num_blocks, launch.mixed() ? launch.vectors() : 0), launch(launch), number(number) {}

inline void Launch::start(uint32_t block, int sub, bool cube) {
  int number = int(block) * cores_of_a_block() + (mixed() && !cube ? 1 + sub : 0);
  live.push_back(std::make_unique<Engine>(*this, number, block, sub, cube));
  Engine &core = *live.back();
  auto &stack = stacks[number] = std::make_unique<Stack>();
  if (stack->memory == MAP_FAILED) throw Fault{"the emulator has no memory for a core's stack"};
  getcontext(&core.context);
  core.context.uc_stack.ss_sp = stack->memory;
  core.context.uc_stack.ss_size = Stack::BYTES;
  core.context.uc_link = &scheduler;
  uint64_t self = reinterpret_cast<uint64_t>(&core);
  makecontext(&core.context, reinterpret_cast<void (*)()>(enter), 2, unsigned(self >> 32), unsigned(self));
}

inline void Launch::enter(unsigned high, unsigned low) {
  Engine &core = *reinterpret_cast<Engine *>(uint64_t(high) << 32 | low);
  Launch &launch = core.launch;
  try {
    if (!launch.abandoned) {
      launch.thunk(launch.arguments);
      core.finish();
    }
  } catch (const Abandoned &) {
  } catch (const Fault &fault) {
    if (!launch.fault) launch.fault = std::make_unique<Fault>(fault), launch.faulted_on_cube = core.cube;
  } catch (const std::exception &error) {
    if (!launch.fault) launch.fault = std::make_unique<Fault>(Fault{std::string("the emulator failed: ") + error.what()});
  }
  core.done = true;
}

inline void Launch::resume(Engine &core) {
  running = &core;
  swapcontext(&scheduler, &core.context);
  running = nullptr;
}

inline void Launch::forget_done() {
  for (auto &core : live)
    if (core->done) stacks.erase(core->number);
  live.erase(std::remove_if(live.begin(), live.end(), [](auto &core) { return core->done; }), live.end());
}

inline int Launch::run() {
  uint32_t next = 0;
  try {
    while (!fault && (next < num_blocks || !live.empty())) {
      while (next < num_blocks && live.size() + cores_of_a_block() <= blocks_at_once() * cores_of_a_block()) begin(next++);
      std::vector<Engine *> able;
      for (auto &core : live)
        if (!core->stuck) able.push_back(core.get());
      if (able.empty()) {
        std::string text = "deadlock";
        for (size_t i = 0; i < live.size() && i < 4; i++) text += "; " + live[i]->held_up();
        fault = std::make_unique<Fault>(Fault{text}), faulted_on_cube = live.front()->cube;
        break;
      }
      Engine *next_core = able[random.below(able.size())];
      // Those that are behind in modelled time first, so that none finds in level 2 cache what it would have had to wait for.
      if (cost.only)
        next_core = *std::min_element(able.begin(), able.end(), [](Engine *a, Engine *b) { return a->modelled() < b->modelled(); });
      resume(*next_core);
      forget_done();
    }
    if (!fault) check_cross_flags();
  } catch (const Fault &raised) {
    fault = std::make_unique<Fault>(raised);
  }
  abandoned = true;
  for (auto &core : live)
    if (!core->done) resume(*core);
  forget_done();
  marks.tell();
  if (!fault && cost.on) cost.write(kernel, blocks_at_once());
  if (!fault) return 0;
  host.report(host.context, (std::string(kernel) + ": " + fault->text).c_str());
  return faulted_on_cube ? 507015 : 507035;
}

inline void Launch::cross_set(Engine &setter, int mode, int id, const Clock &clock) {
  setter.require(mixed(), "cross-core flags need a kernel of a mixed type");
  setter.require(mode >= 0 && mode < CROSS_MODES, "the mode of a cross-core flag is 0, 1 or 2");
  setter.require(id >= 0 && id < CROSS_FLAGS, "the number of a cross-core flag is 0 to 15");
  setter.require(mode != 0 || num_blocks <= blocks_at_once(), "mode 0 waits for all blocks, of which there are more than cores");
  setter.require(mode != 1 || !setter.cube, "mode 1 is between vector cores");
  std::vector<int> cubes, vector_cores;
  for (uint32_t block = mode == 0 ? 0 : setter.block; block < (mode == 0 ? num_blocks : setter.block + 1); block++) {
    cubes.push_back(block * cores_of_a_block());
    for (int sub = 0; sub < vectors(); sub++) vector_cores.push_back(block * cores_of_a_block() + 1 + sub);
  }
  auto &group = setter.cube ? cubes : vector_cores, &released = mode == 2 && setter.cube ? vector_cores : mode == 2 ? cubes : group;
  cross[setter.number][id].arrived[mode].push_back(clock);
  for (int member : group)
    if (cross[member][id].arrived[mode].empty()) return;
  Clock together;
  for (int member : group) {
    auto &arrived = cross[member][id].arrived[mode];
    together.join(arrived.front());
    arrived.pop_front();
  }
  for (int core : released) {
    cross[core][id].granted.push_back(together);
    setter.require(cross[core][id].granted.size() <= CROSS_COUNT, "a cross-core flag is set more than 15 times ahead of its waits");
  }
  for (auto &core : live) core->stuck = false;
}

// Each flag that was set must have been waited for: the counters outlive the launch on the chip.
inline void Launch::check_cross_flags() {
  for (auto &[core, flags] : cross)
    for (int id = 0; id < CROSS_FLAGS; id++) {
      size_t left = flags[id].granted.size();
      for (auto &arrived : flags[id].arrived) left += arrived.size();
      if (!left) continue;
      faulted_on_cube = mixed() && core % cores_of_a_block() == 0;
      throw Fault{"CrossCoreSetFlag without CrossCoreWaitFlag: flag " + std::to_string(id) + " at the end of block " + std::to_string(core / cores_of_a_block())};
    }
}

}  // namespace ropeway
