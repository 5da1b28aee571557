// An estimate of the cycles that a launch takes, from published figures: never a measurement, and never compared with an Ascend by us.
//
// Each instruction occupies its pipe for a start-up and for its size over the pipe's width; what depends on it may start some cycles later still. Flags,
// barriers and queues order pipes in modelled time as they do in the clocks of machine.h, with which the time rides along. A block ends with the last
// of its pipes; blocks go in order to the core that is free first; what level 2 cache and HBM can move bounds the whole from below.
//
//     MTE2 |copy 0 |copy 1 |        an instruction starts at the latest of: its pipe free, what it waits for done,
//     V            |add 0  |add 1   and S having come so far as to issue it
//
// What is not modelled: the launch itself, instruction fetch, bank conflicts in UB, cores getting in each other's way before the bounds do, lines that
// leave level 2 cache before they are used again.
//
// Switched on by ROPEWAY_EMULATED_CANN_COST=FILE, to which each launch appends a line of JSON. Further variables that begin so:
//
//   _CHIP      910B1, 910B2, 910B3 (default), 910B4
//   _FIGURES   published (default): widths as documented; profile: those that the published profile of one kernel comes to, where it has them
//   _ONLY      computes nothing: what the kernel reads of its own results is taken as 0, and counted
#pragma once
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <unordered_map>

#include "machine.h"

namespace ropeway {

using Cycles = uint64_t;

struct Chip {
  const char *name;
  int ai_cores;
  double megahertz, hbm_bytes_per_second;
};
// Cores and clocks: platform data of CANN. HBM: 1.6 TB/s is the figure of CSET ("Pushing the Limits", on the 910B1), CANN's profiler takes 1.8 as its roof;
// that 910B2 and 910B3 have the same, and 910B4 with half the stacks half of it, is assumed.
constexpr Chip CHIPS[] = {{"910B1", 24, 1850, 1.6e12}, {"910B2", 24, 1800, 1.6e12}, {"910B3", 20, 1800, 1.6e12}, {"910B4", 20, 1500, 0.8e12}};
// Read and written together: the roof that CANN 8.5's profiler (msProf) draws for a 910B1. That the others have it too is assumed.
constexpr double L2_BYTES_PER_SECOND = 8.0e12;

// Start-ups in cycles, widths in bytes a cycle of one core.
struct Figures {
  const char *name;
  // Platform data of CANN for the 910B1 (AICoreMemoryRates): l2_read_rate 110, l2_write_rate 86, ddr_rate 32.
  double l2_read = 110, l2_write = 86, hbm = 32;
  // asc-devkit, tests/perf/load_data_perf, for dav-2201: L1 to L0A 256 bytes a cycle, to L0B 128, start-up 28; to BT 32, start-up 20. That the start-ups
  // of instructions in a row do not overlap is assumed; the published profile below agrees.
  double to_l0a = 256, to_l0b = 128, to_bt = 32;
  Cycles load_start = 28, bias_start = 20;
  // asc-devkit, tests/perf/fixpipe_perf: 64 elements a cycle, start-up 20 (measured there on the way to L1).
  double fixpipe_elements = 64;
  Cycles fixpipe_start = 20;
  // asc-devkit, tests/perf/mmad_perf: 16 x 16 x 16 of 16 bits a cycle, x 32 of 8 bits, x 4 of 32 bits, no start-up. The profile has 1.5% more.
  double cube = 1;
  // Assumed: copies to and from global memory start like those from L1, and arrive so much later. (CANN's guide wants 16 KiB a copy for full width.)
  Cycles copy_start = 28, memory_latency = 300;
  // Assumed: a burst is at least 32 bytes and one cycle.
  double burst_bytes = 32;
  // CANN's guide: the vector unit adds 128 halves a cycle, a repeat of 256 bytes. Assumed: as many bytes of other types; four times as long for division, roots,
  // exponentials and logarithms; eight elements gathered a cycle; results 20 cycles later.
  double slow_vector = 4, gathered = 8;
  Cycles vector_latency = 20;
  // From the profile: S is busy 8.1% of the time with some twelve instructions a step. Assumed: reads of UB and of global memory by S.
  Cycles issue = 4, flag = 1, scalar_ub = 20, scalar_memory = 300;
};

// pto-isa, kernels/gemm_performance: f16, 6144^3 on 24 cores in 1.506 ms, 308 TFLOP/s; of 2.78 million cycles a core MTE2 is busy 95.2%, the cube 86.1%, MTE1
// 68.1%, S 8.1%. MTE2 then takes in 85.6 bytes a cycle, of which 3% at the rate of HBM: 90 from level 2 cache; an Mmad takes 1.015 of its cycles.
inline Figures figures_of(const char *name) {
  Figures figures{name};
  if (std::strcmp(name, "profile")) return figures;
  figures.l2_read = 90;
  figures.cube = 1.015;
  return figures;
}

// The lines of 512 bytes of global memory that a launch touched: those that were not touched before come from HBM.
class Footprint {
  std::unordered_map<uint64_t, uint64_t> words;

 public:
  static constexpr uint64_t LINE = 512;
  uint64_t lines = 0;
  // How many lines of these are new.
  uint64_t touch(const Rows &rows) {
    uint64_t before = lines;
    for (uint64_t row = 0; row < rows.count && rows.bytes; row++) {
      uint64_t from = rows.address + row * rows.stride, to = from + rows.bytes;
      for (uint64_t line = from / LINE; line <= (to - 1) / LINE; line++) {
        uint64_t &word = words[line / 64], bit = 1ull << line % 64;
        lines += !(word & bit);
        word |= bit;
      }
    }
    return lines - before;
  }
};

// Of one core: when each pipe is free, when all that it was given has ended, how long it was busy.
struct Timing {
  Cycles free[PIPES] = {}, done[PIPES] = {}, busy[PIPES] = {};
  std::deque<Cycles> starts[PIPES];  // of the last instructions, as many as a queue holds
};

// What a block came to, on its cube core and on the busiest of its vector cores.
struct BlockCost {
  uint32_t block = 0;
  Cycles end = 0, cube[PIPES] = {}, vector[PIPES] = {};
};

// Of one launch.
class Cost {
 public:
  const Chip *chip = &CHIPS[2];
  Figures figures{"published"};
  const char *const file = std::getenv("ROPEWAY_EMULATED_CANN_COST");
  const bool on = file && *file, only = on && std::getenv("ROPEWAY_EMULATED_CANN_COST_ONLY");
  uint64_t unknown_values = 0;

  Cost() {
    if (!on) return;
    const char *name = std::getenv("ROPEWAY_EMULATED_CANN_COST_CHIP"), *set = std::getenv("ROPEWAY_EMULATED_CANN_COST_FIGURES");
    bool known = !name || !*name;
    for (const Chip &each : CHIPS)
      if (!known && !std::strcmp(each.name, name)) chip = &each, known = true;
    if (!known) throw Fault{std::string("no figures of a chip ") + name};
    if (set && *set && std::strcmp(set, "published") && std::strcmp(set, "profile")) throw Fault{std::string("no figures ") + set};
    figures = figures_of(set && *set ? set : "published");
  }

  // The cycles that an instruction occupies its pipe, and those until its result is there.
  std::pair<Cycles, Cycles> of(const char *instruction, const Work &work) {
    const Figures &f = figures;
    auto up = [](double cycles) { return Cycles(cycles + 0.999999); };
    switch (work.kind) {
      case Work::SYNC: return {f.flag, 0};
      case Work::READ: {
        double bytes = whole_bursts(work.rows), missing = std::min(bytes, double(footprint.touch(work.rows) * Footprint::LINE));
        read += work.amount;
        return {f.copy_start + up(std::max((bytes - missing) / f.l2_read + missing / f.hbm, double(work.rows.count))), f.memory_latency};
      }
      case Work::WRITE: {
        footprint.touch(work.rows);
        written += work.amount;
        return {f.copy_start + up(std::max(whole_bursts(work.rows) / f.l2_write, double(work.rows.count))), f.memory_latency};
      }
      case Work::TO_L0A: return {f.load_start + up(work.amount / f.to_l0a), 0};
      case Work::TO_L0B: return {f.load_start + up(work.amount / f.to_l0b), 0};
      case Work::TO_BT: return {f.bias_start + up(work.amount / f.to_bt), 0};
      case Work::CUBE: macs += work.macs, cube_cycles += work.amount; return {up(work.amount * f.cube), 0};
      case Work::FIXPIPE: {
        footprint.touch(work.rows);
        written += double(work.rows.count) * double(work.rows.bytes);
        return {f.fixpipe_start + up(std::max(work.amount / f.fixpipe_elements, whole_bursts(work.rows) / f.l2_write)), f.memory_latency};
      }
      case Work::VECTOR: return {up(work.amount), f.vector_latency};
      case Work::SLOW_VECTOR: return {up(work.amount * f.slow_vector), f.vector_latency};
      case Work::GATHER: return {up(work.amount / f.gathered), f.vector_latency};
      default: unpriced[instruction]++; return {1, 0};
    }
  }

  void ended(const Timing &core, uint32_t block, bool on_cube) {
    auto &cost = blocks[block];
    cost.block = block;
    Cycles end = *std::max_element(core.done, core.done + PIPES), *busy = on_cube ? cost.cube : cost.vector;
    cost.end = std::max(cost.end, end);
    for (int pipe = 0; pipe < PIPES; pipe++) busy[pipe] = std::max(busy[pipe], core.busy[pipe]);
  }

  // `at_once` cores, or groups of them, take the blocks in order.
  void write(const char *kernel, uint64_t at_once) const {
    std::vector<BlockCost> cores(std::min<uint64_t>(at_once, std::max<size_t>(1, blocks.size())));
    for (auto &[number, block] : blocks) {
      auto &core = *std::min_element(cores.begin(), cores.end(), [](auto &a, auto &b) { return a.end < b.end; });
      core.end += block.end;
      for (int pipe = 0; pipe < PIPES; pipe++) core.cube[pipe] += block.cube[pipe], core.vector[pipe] += block.vector[pipe];
    }
    auto &longest = *std::max_element(cores.begin(), cores.end(), [](auto &a, auto &b) { return a.end < b.end; });
    double hertz = chip->megahertz * 1e6, touched = double(footprint.lines * Footprint::LINE);
    Cycles hbm = Cycles(touched / chip->hbm_bytes_per_second * hertz + 0.5), l2 = Cycles((read + written) / L2_BYTES_PER_SECOND * hertz + 0.5);
    Cycles total = std::max({longest.end, hbm, l2, Cycles(1)}), most = 0;
    std::string bound;
    auto pipes = [&](const Cycles *busy, const char *where) {
      std::string text = "{";
      for (int pipe = 0; pipe < PIPES; pipe++) {
        text += std::string(pipe ? ", \"" : "\"") + PIPE_NAMES[pipe] + "\": " + std::to_string(busy[pipe]);
        if (busy[pipe] > most) most = busy[pipe], bound = std::string(where) + PIPE_NAMES[pipe];
      }
      return text + "}";
    };
    std::string cube = pipes(longest.cube, "cube core's "), vector = pipes(longest.vector, "vector core's "), missing;
    if (hbm >= longest.end) bound = "HBM";
    if (l2 >= longest.end && l2 >= hbm) bound = "L2";
    for (auto &[name, times] : unpriced) missing += (missing.empty() ? "\"" : ", \"") + name + "\": " + std::to_string(times);
    double seconds = double(total) / hertz;
    FILE *out = std::fopen(file, "a");
    if (!out) return;
    std::fprintf(out,
                 "{\"what\": \"estimate, not a measurement; never run on Ascend\", \"kernel\": \"%s\", \"chip\": \"%s\", \"figures\": \"%s\", \"blocks\": %zu, \"cores\": %zu, "
                 "\"cycles\": %llu, \"microseconds\": %.3f, \"bound\": \"%s\", \"core_cycles\": %llu, \"hbm_cycles\": %llu, \"l2_cycles\": %llu, \"cube_core\": %s, \"vector_core\": %s, "
                 "\"bytes_read\": %.0f, \"bytes_written\": %.0f, \"bytes_touched\": %.0f, \"macs\": %.0f, \"tera_operations_a_second\": %.2f, \"cube_utilisation\": %.4f, "
                 "\"values_taken_as_zero\": %llu, \"unpriced\": {%s}}\n",
                 kernel, chip->name, figures.name, blocks.size(), cores.size(), (unsigned long long)total, seconds * 1e6, bound.c_str(), (unsigned long long)longest.end,
                 (unsigned long long)hbm, (unsigned long long)l2, cube.c_str(), vector.c_str(), read, written, touched, macs, 2e-12 * macs / seconds,
                 cube_cycles / (double(total) * chip->ai_cores), (unsigned long long)unknown_values, missing.c_str());
    std::fclose(out);
  }

 private:
  Footprint footprint;
  double read = 0, written = 0, macs = 0, cube_cycles = 0;
  std::map<std::string, uint64_t> unpriced;
  std::map<uint32_t, BlockCost> blocks;

  double whole_bursts(const Rows &rows) const {
    return double(rows.count) * std::max(double(rows.bytes), rows.bytes ? figures.burst_bytes : 0);
  }
};

}  // namespace ropeway
