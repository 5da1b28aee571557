// A mixture-of-experts layer, wholly on the device: each token is routed to the two best of eight experts, and their outputs are weighed and summed.
//
//     c++ -std=c++17 moe.cpp $(pkg-config --cflags --libs ropeway) -o moe && ./moe opencl
#include <cmath>
#include <cstdio>
#include <initializer_list>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <ropeway.h>

namespace {

const ropeway_api &ropeway() {
    static const ropeway_api *api = ropeway_get_api(ROPEWAY_API_VERSION);
    if (api == nullptr) {
        throw std::runtime_error("the library is older than this program");
    }
    return *api;
}

void check(ropeway_status status) {
    if (status != ROPEWAY_OK) {
        throw std::runtime_error(ropeway().last_error());
    }
}

struct Release {
    void operator()(ropeway_device *device) const { ropeway().device_release(device); }
    void operator()(ropeway_queue *queue) const { ropeway().queue_release(queue); }
    void operator()(ropeway_buffer *buffer) const { ropeway().buffer_release(buffer); }
    void operator()(ropeway_plan *plan) const { ropeway().plan_release(plan); }
};
template <typename T> using Handle = std::unique_ptr<T, Release>;

// Calls a function whose last argument is the place for a new handle.
template <typename T, typename... Parameters, typename... Arguments>
Handle<T> make(ropeway_status (*function)(Parameters...), Arguments... arguments) {
    T *handle = nullptr;
    check(function(arguments..., &handle));
    return Handle<T>(handle);
}

struct Tensor {
    Handle<ropeway_buffer> buffer;
    ropeway_tensor description;
};

class Layer {
  public:
    Layer(const char *selector, std::uint64_t tokens, std::uint64_t hidden, std::uint64_t inter, std::uint64_t experts, std::uint64_t topk)
        : device(make<ropeway_device>(ropeway().device_open, selector, nullptr)),
          queue(make<ropeway_queue>(ropeway().queue_create, device.get(), ROPEWAY_QUEUE_COMPUTE)) {
        x = tensor({tokens, hidden}, 1);
        logits = tensor({tokens, experts}, 3);
        w_gate_up = tensor({experts, 2 * inter, hidden}, 5);
        w_down = tensor({experts, hidden, inter}, 7);
        ropeway_moe_ffn layer;
        ROPEWAY_INIT(layer);
        layer.x = &x.description;
        layer.logits = &logits.description;
        layer.w_gate_up = &w_gate_up.description;
        layer.w_down = &w_down.description;
        layer.topk = topk;
        layer.renormalize = 1;
        plan = make<ropeway_plan>(ropeway().plan_moe_ffn, device.get(), &layer, nullptr);
    }

    // The layer's output, [tokens, hidden].
    std::vector<float> run() {
        ropeway_plan_info info;
        ROPEWAY_INIT(info);
        check(ropeway().plan_info(plan.get(), &info));
        auto workspace = make<ropeway_buffer>(ropeway().buffer_create, device.get(), info.workspace_bytes);
        std::vector<ropeway_tensor> operands{x.description, logits.description, w_gate_up.description, w_down.description};
        // The outputs, as the plan describes them.
        std::vector<Handle<ropeway_buffer>> outputs;
        for (std::size_t index = operands.size(); index < info.operand_count; index++) {
            ropeway_operand_info operand;
            ROPEWAY_INIT(operand);
            check(ropeway().plan_operand(plan.get(), index, &operand));
            outputs.push_back(make<ropeway_buffer>(ropeway().buffer_create, device.get(), operand.bytes));
            ropeway_tensor output;
            ROPEWAY_INIT(output);
            output.name = operand.name;
            output.buffer = outputs.back().get();
            operands.push_back(output);
        }
        ropeway_execution execution;
        ROPEWAY_INIT(execution);
        execution.plan = plan.get();
        execution.operands = operands.data();
        execution.operand_count = operands.size();
        execution.workspace = workspace.get();
        check(ropeway().queue_execute(queue.get(), &execution));
        std::vector<float> y(x.description.shape[0] * x.description.shape[1]);
        check(ropeway().queue_read_blocking(queue.get(), outputs[0].get(), 0, y.data(), y.size() * sizeof(float)));
        check(ropeway().queue_synchronize(queue.get(), ROPEWAY_NO_TIMEOUT));
        return y;
    }

    // Values that `tensor` gives a tensor.
    static float value(std::size_t index, unsigned seed) { return static_cast<float>(index * 37 % (11 + 2 * seed)) / 8.0F - 0.5F; }

  private:
    Tensor tensor(std::initializer_list<std::uint64_t> shape, unsigned seed) {
        Tensor made;
        ROPEWAY_INIT(made.description);
        made.description.dtype = ROPEWAY_DTYPE_F32;
        std::size_t count = 1;
        for (auto extent : shape) {
            made.description.shape[made.description.rank++] = extent;
            count *= extent;
        }
        std::vector<float> values(count);
        for (std::size_t index = 0; index < count; index++) {
            values[index] = value(index, seed);
        }
        const auto bytes = count * sizeof(float);
        made.buffer = make<ropeway_buffer>(ropeway().buffer_create, device.get(), bytes);
        made.description.buffer = made.buffer.get();
        check(ropeway().queue_upload(queue.get(), made.buffer.get(), 0, values.data(), bytes));
        return made;
    }

    Handle<ropeway_device> device;
    Handle<ropeway_queue> queue;
    Tensor x, logits, w_gate_up, w_down;
    Handle<ropeway_plan> plan;
};

// The same in plain loops.
std::vector<double> reference(std::size_t tokens, std::size_t hidden, std::size_t inter, std::size_t experts, std::size_t topk) {
    std::vector<double> y(tokens * hidden);
    for (std::size_t t = 0; t < tokens; t++) {
        const auto logit = [&](std::size_t expert) { return Layer::value(t * experts + expert, 3); };
        std::vector<std::size_t> chosen;
        while (chosen.size() < topk) {
            std::size_t best = experts;
            for (std::size_t e = 0; e < experts; e++) {
                bool taken = false;
                for (auto other : chosen) {
                    taken = taken || other == e;
                }
                if (!taken && (best == experts || logit(e) > logit(best))) {
                    best = e;
                }
            }
            chosen.push_back(best);
        }
        double sum = 0;
        for (auto e : chosen) {
            sum += std::exp(logit(e));
        }
        for (auto e : chosen) {
            std::vector<double> inner(inter);
            for (std::size_t i = 0; i < inter; i++) {
                double gate = 0, up = 0;
                for (std::size_t h = 0; h < hidden; h++) {
                    const double input = Layer::value(t * hidden + h, 1);
                    gate += input * Layer::value((e * 2 * inter + i) * hidden + h, 5);
                    up += input * Layer::value((e * 2 * inter + inter + i) * hidden + h, 5);
                }
                inner[i] = gate / (1 + std::exp(-gate)) * up;
            }
            for (std::size_t h = 0; h < hidden; h++) {
                for (std::size_t i = 0; i < inter; i++) {
                    y[t * hidden + h] += std::exp(logit(e)) / sum * inner[i] * Layer::value((e * hidden + h) * inter + i, 7);
                }
            }
        }
    }
    return y;
}

} // namespace

int main(int argc, char **argv) {
    const std::size_t tokens = 6, hidden = 32, inter = 24, experts = 8, topk = 2;
    try {
        const auto y = Layer(argc > 1 ? argv[1] : "cpu", tokens, hidden, inter, experts, topk).run();
        const auto expected = reference(tokens, hidden, inter, experts, topk);
        double largest = 0, worst = 0;
        for (std::size_t index = 0; index < y.size(); index++) {
            largest = std::fmax(largest, std::fabs(expected[index]));
            worst = std::fmax(worst, std::fabs(expected[index] - y[index]));
        }
        std::printf("largest output %g, largest difference from plain loops %g\n", largest, worst);
        // f32 through two products of a few dozen terms each.
        return worst <= 1e-5 * largest ? 0 : 1;
    } catch (const std::exception &error) {
        std::fprintf(stderr, "moe: %s\n", error.what());
        return 1;
    }
}
