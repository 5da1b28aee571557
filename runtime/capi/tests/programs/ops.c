/* Every op that has a struct, against plain loops or against the op it is made of; plans, prepared weights, graphs, events, determinism. */
#include "check.h"

static const char *selector;
static ropeway_device *device;
static ropeway_queue *queue;

static ropeway_operand_info operand_info(const ropeway_plan *plan, size_t index) {
    ropeway_operand_info info;
    ROPEWAY_INIT(info);
    OK(rw->plan_operand(plan, index, &info));
    return info;
}

static ropeway_plan_info plan_info(const ropeway_plan *plan) {
    ropeway_plan_info info;
    ROPEWAY_INIT(info);
    OK(rw->plan_info(plan, &info));
    return info;
}

/* Executes a plan with its inputs in place; `outputs` get memory. */
static void run(ropeway_plan *plan, const ropeway_tensor *inputs, size_t input_count, ropeway_tensor *outputs, size_t output_count) {
    ropeway_tensor operands[16];
    HOLDS(plan_info(plan).operand_count == input_count + output_count);
    for (size_t i = 0; i < input_count; i++) operands[i] = inputs[i];
    for (size_t i = 0; i < output_count; i++) {
        HOLDS(operand_info(plan, input_count + i).is_output == 1);
        place(device, queue, &outputs[i], NULL);
        operands[input_count + i] = outputs[i];
    }
    execute(device, queue, plan, operands, input_count + output_count);
    OK(rw->queue_synchronize(queue, ROPEWAY_NO_TIMEOUT));
}

static void names(void) {
    const char *ours[] = {"gemm",           "grouped_gemm",    "grouped_gemm_masked", "attention",      "attention_varlen",
                          "attention_paged", "moe_route",       "expert_scatter",      "expert_gather", "moe_ffn"};
    for (size_t i = 0; i < sizeof(ours) / sizeof(*ours); i++) {
        size_t at = 0;
        while (rw->op_name(at) != NULL && strcmp(rw->op_name(at), ours[i]) != 0) at++;
        HOLDS(rw->op_name(at) != NULL);
    }
}

enum { M = 6, N = 8, K = 32 };

/* By its struct, by names, by a struct with a kernel that is not there, with a prepared weight. */
static void gemm(void) {
    const float alpha = 0.5f, beta = 2;
    float a[M * K], b[N * K], c[N], d[M * N], again[M * N];
    ropeway_tensor in[3] = {F32(2, M, K), F32(2, N, K), F32(2, 1, N)}, out = F32(2, M, N);
    ropeway_tensor inputs[3];
    ropeway_attribute attributes[4];
    ropeway_gemm op;
    ropeway_request request;
    ropeway_plan_options options;
    ropeway_plan *plan;
    ropeway_buffer *prepared;
    const char *b_name = "b";

    values(a, M * K, 1);
    values(b, N * K, 2);
    values(c, N, 3);
    place(device, queue, &in[0], a);
    place(device, queue, &in[1], b);
    place(device, queue, &in[2], c);
    ROPEWAY_INIT(op);
    op.a = &in[0];
    op.b = &in[1];
    op.c = &in[2];
    op.trans_b = 1;
    op.alpha = &alpha;
    op.beta = &beta;
    op.activation = ROPEWAY_ACTIVATION_RELU;
    OK(rw->plan_gemm(device, &op, NULL, &plan));
    run(plan, in, 3, &out, 1);
    fetch(queue, &out, d);
    for (int i = 0; i < M; i++) {
        for (int j = 0; j < N; j++) {
            double sum = 2 * c[j];
            for (int k = 0; k < K; k++) sum += 0.5 * a[i * K + k] * b[j * K + k];
            CLOSE(d[i * N + j], sum > 0 ? sum : 0, 0);
        }
    }
    HOLDS(strcmp(plan_info(plan).op, "gemm") == 0);
    HOLDS(strstr(plan_info(plan).description, "gemm (") == plan_info(plan).description);
    HOLDS(plan_info(plan).operations == 2.0 * M * N * K);
    HOLDS(plan_info(plan).launch_count > 0);
    HOLDS(operand_info(plan, 1).shape[0] == N && operand_info(plan, 1).bytes == 4 * N * K);
    REFUSED(rw->plan_operand(plan, 4, NULL), ROPEWAY_ERROR_INVALID_ARGUMENT, "operand: found 4, expected less than 4");
    rw->plan_release(plan);

    memcpy(inputs, in, sizeof(in));
    inputs[0].name = "a";
    inputs[1].name = "b";
    inputs[2].name = "c";
    for (int i = 0; i < 4; i++) ROPEWAY_INIT(attributes[i]);
    attributes[0].name = "trans_b";
    attributes[0].kind = ROPEWAY_ATTRIBUTE_FLAG;
    attributes[0].integer = 1;
    attributes[1].name = "alpha";
    attributes[1].kind = ROPEWAY_ATTRIBUTE_NUMBER;
    attributes[1].number = 0.5;
    attributes[2].name = "beta";
    attributes[2].kind = ROPEWAY_ATTRIBUTE_INTEGER;
    attributes[2].integer = 2;
    attributes[3].name = "activation";
    attributes[3].kind = ROPEWAY_ATTRIBUTE_WORD;
    attributes[3].word = "relu";
    ROPEWAY_INIT(request);
    request.op = "gemm";
    request.inputs = inputs;
    request.input_count = 3;
    request.attributes = attributes;
    request.attribute_count = 4;
    OK(rw->plan_create(device, &request, NULL, &plan));
    drop(&out, 1);
    run(plan, inputs, 3, &out, 1);
    fetch(queue, &out, again);
    HOLDS(memcmp(d, again, sizeof(d)) == 0);
    rw->plan_release(plan);

    ROPEWAY_INIT(options);
    options.kernel = "no_such_kernel";
    REFUSED(rw->plan_gemm(device, &op, &options, &plan), ROPEWAY_ERROR_UNSUPPORTED, "no_such_kernel");
    options.kernel = NULL;
    options.prepared = &b_name;
    options.prepared_count = 1;
    if (rw->plan_gemm(device, &op, &options, &plan) == ROPEWAY_ERROR_UNSUPPORTED) {
        HOLDS(strstr(rw->last_error(), "takes b in prepared form") != NULL);
        HOLDS(strncmp(selector, "opencl", 6) != 0);
    } else {
        HOLDS(operand_info(plan, 1).is_prepared == 1 && operand_info(plan, 0).is_prepared == 0);
        REFUSED(rw->plan_prepare(plan, "no_such", &in[1], queue, &prepared), ROPEWAY_ERROR_INVALID_ARGUMENT, "operand: found \"no_such\"");
        OK(rw->plan_prepare(plan, "b", &in[1], queue, &prepared));
        HOLDS(rw->buffer_size(prepared) == operand_info(plan, 1).bytes);
        inputs[1].buffer = prepared;
        inputs[1].dtype = ROPEWAY_DTYPE_DEFAULT;
        drop(&out, 1);
        run(plan, inputs, 3, &out, 1);
        fetch(queue, &out, again);
        HOLDS(memcmp(d, again, sizeof(d)) == 0);
        rw->plan_release(plan);
        rw->buffer_release(prepared);
    }

    op.out_dtype = ROPEWAY_DTYPE_BF16;
    OK(rw->plan_gemm(device, &op, NULL, &plan));
    HOLDS(operand_info(plan, 3).dtype == ROPEWAY_DTYPE_BF16 && operand_info(plan, 3).bytes == 2 * M * N);
    rw->plan_release(plan);
    op.b_format = "q9";
    REFUSED(rw->plan_gemm(device, &op, NULL, &plan), ROPEWAY_ERROR_INVALID_ARGUMENT, "b_format: found \"q9\"");
    drop(in, 3);
    drop(&out, 1);
}

/* A kernel with tunables of the caller's computes the same; what does not fit is refused. */
static void forced(void) {
    const char *names[] = {"MR", "KC", "STRIPS"};
    float a[M * K], b[K * N], d[M * N], again[M * N];
    ropeway_tensor in[2] = {F32(2, M, K), F32(2, K, N)}, out = F32(2, M, N);
    ropeway_tunable config[3];
    ropeway_plan_options options;
    ropeway_gemm op;
    ropeway_plan *plan;

    values(a, M * K, 1);
    values(b, K * N, 2);
    place(device, queue, &in[0], a);
    place(device, queue, &in[1], b);
    ROPEWAY_INIT(op);
    op.a = &in[0];
    op.b = &in[1];
    ROPEWAY_INIT(options);
    for (int i = 0; i < 3; i++) {
        ROPEWAY_INIT(config[i]);
        config[i].name = names[i];
    }
    config[0].value = 12;
    config[1].value = 256;
    config[2].value = 2;
    options.config = config;
    options.config_count = 3;
    REFUSED(rw->plan_gemm(device, &op, &options, &plan), ROPEWAY_ERROR_INVALID_ARGUMENT, "kernel: found none for KC=256 MR=12 STRIPS=2");
    HOLDS(plan == NULL);
    options.kernel = "no_such_kernel";
    REFUSED(rw->plan_gemm(device, &op, &options, &plan), ROPEWAY_ERROR_UNSUPPORTED, "kernel no_such_kernel cannot run this gemm");
    options.config = NULL;
    REFUSED(rw->plan_gemm(device, &op, &options, &plan), ROPEWAY_ERROR_INVALID_ARGUMENT, "config: found NULL for 3 elements");
    options.config = config;
    config[1].struct_size = 8;
    REFUSED(rw->plan_gemm(device, &op, &options, &plan), ROPEWAY_ERROR_INVALID_ARGUMENT, "config: found struct_size 8 in element 1");
    config[1].struct_size = sizeof(config[1]);
    config[2].name = NULL;
    REFUSED(rw->plan_gemm(device, &op, &options, &plan), ROPEWAY_ERROR_INVALID_ARGUMENT, "config[2].name: found NULL");
    config[2].name = "MR";
    REFUSED(rw->plan_gemm(device, &op, &options, &plan), ROPEWAY_ERROR_INVALID_ARGUMENT, "MR: found a second value");
    config[2].name = "STRIPS";
    if (strncmp(selector, "cpu", 3) == 0) {
        options.kernel = "gemm_native";
        REFUSED(rw->plan_gemm(device, &op, &options, &plan), ROPEWAY_ERROR_INVALID_ARGUMENT, "KC: found 256, expected a tunable of gemm_native");
    }
    if (strncmp(selector, "opencl", 6) == 0) {
        options.kernel = "gemm_packed";
        OK(rw->plan_gemm(device, &op, &options, &plan));
        HOLDS(strstr(plan_info(plan).description, "gemm_packed [KC=256 MR=12 STRIPS=2 ") != NULL);
        run(plan, in, 2, &out, 1);
        fetch(queue, &out, d);
        rw->plan_release(plan);
        OK(rw->plan_gemm(device, &op, NULL, &plan));
        HOLDS(strstr(plan_info(plan).description, "KC=256") == NULL);
        drop(&out, 1);
        run(plan, in, 2, &out, 1);
        fetch(queue, &out, again);
        drop(&out, 1);
        rw->plan_release(plan);
        /* The sums are exact, whatever their order. */
        HOLDS(memcmp(d, again, sizeof(d)) == 0);
        config[1].value = 257;
        REFUSED(rw->plan_gemm(device, &op, &options, &plan), ROPEWAY_ERROR_INVALID_ARGUMENT, "KC: found 257, expected one of");
        options.config_count = 1;
        REFUSED(rw->plan_gemm(device, &op, &options, &plan), ROPEWAY_ERROR_INVALID_ARGUMENT, "KC: found nothing, expected one of");
    }
    drop(in, 2);
}

/* An output in the memory of an input, where the plan says that it may be, and only there. */
static void in_place(void) {
    float a[M * N], b[M * N], d[M * N];
    ropeway_tensor operands[3] = {F32(2, M, N), F32(2, M, N), F32(2, M, N)};
    ropeway_execution execution;
    ropeway_request request;
    ropeway_plan *plan;

    values(a, M * N, 1);
    values(b, M * N, 2);
    operands[0].name = "a";
    operands[1].name = "b";
    ROPEWAY_INIT(request);
    request.op = "elementwise";
    request.inputs = operands;
    request.input_count = 2;
    OK(rw->plan_create(device, &request, NULL, &plan));
    HOLDS(operand_info(plan, 0).in_place == 0 && operand_info(plan, 1).in_place == 0);
    HOLDS(operand_info(plan, 2).in_place == 3);
    for (int input = 0; input < 2; input++) {
        place(device, queue, &operands[0], a);
        place(device, queue, &operands[1], b);
        operands[2] = operands[input];
        operands[2].name = "d";
        execute(device, queue, plan, operands, 3);
        fetch(queue, &operands[2], d);
        for (int i = 0; i < M * N; i++) CLOSE(d[i], a[i] + b[i], 0);
        if (input == 0) drop(operands, 2);
    }
    /* A row further on is another place. */
    rw->plan_release(plan);
    ROPEWAY_INIT(execution);
    operands[0].shape[0] = operands[1].shape[0] = operands[2].shape[0] = M / 2;
    operands[2].offset = N;
    OK(rw->plan_create(device, &request, NULL, &plan));
    execution.plan = plan;
    execution.operands = operands;
    execution.operand_count = 3;
    REFUSED(rw->queue_execute(queue, &execution), ROPEWAY_ERROR_INVALID_ARGUMENT, "d: found an output that overlaps b");
    rw->plan_release(plan);

    request.op = "gemm";
    operands[0].shape[0] = operands[1].shape[0] = operands[0].shape[1] = N;
    OK(rw->plan_create(device, &request, NULL, &plan));
    HOLDS(operand_info(plan, 2).is_output == 1 && operand_info(plan, 2).in_place == 0);
    rw->plan_release(plan);
    drop(operands, 2);
}

static void masked(void) {
    enum { EXPERTS = 3, CAPACITY = 4 };
    const int32_t counts[EXPERTS] = {2, 0, 4};
    float a[EXPERTS * CAPACITY * K], b[EXPERTS * N * K], d[EXPERTS * CAPACITY * N];
    ropeway_tensor in[3] = {F32(3, EXPERTS, CAPACITY, K), F32(3, EXPERTS, N, K), I32(1, EXPERTS)}, out = F32(3, EXPERTS, CAPACITY, N);
    ropeway_grouped_gemm_masked op;
    ropeway_plan *plan;
    values(a, EXPERTS * CAPACITY * K, 4);
    values(b, EXPERTS * N * K, 5);
    place(device, queue, &in[0], a);
    place(device, queue, &in[1], b);
    place(device, queue, &in[2], counts);
    ROPEWAY_INIT(op);
    op.a = &in[0];
    op.b = &in[1];
    op.counts = &in[2];
    OK(rw->plan_grouped_gemm_masked(device, &op, NULL, &plan));
    run(plan, in, 3, &out, 1);
    fetch(queue, &out, d);
    for (int e = 0; e < EXPERTS; e++) {
        for (int r = 0; r < CAPACITY * N; r++) {
            double sum = 0;
            for (int k = 0; k < K && r / N < counts[e]; k++) sum += (double)a[(e * CAPACITY + r / N) * K + k] * b[(e * N + r % N) * K + k];
            CLOSE(d[e * CAPACITY * N + r], sum, 0);
        }
    }
    rw->plan_release(plan);
    drop(in, 3);
    drop(&out, 1);
}

enum { SEQUENCES = 2, Q_LEN = 3, KV_LEN = 8, HEADS = 4, KV_HEADS = 2, D = 64, BLOCK = 4, BLOCKS = KV_LEN / BLOCK };
enum { TOKENS = SEQUENCES * Q_LEN, KEYS = SEQUENCES * KV_LEN };

struct attended {
    float o[TOKENS * HEADS * D], lse[TOKENS * HEADS];
};

/* Causal attention in plain loops; all memory is [tokens, heads, d]. */
static void attend(const float *q, const float *k, const float *v, struct attended *expected) {
    for (int row = 0; row < TOKENS * HEADS; row++) {
        int token = row / HEADS, head = row % HEADS / (HEADS / KV_HEADS), first = token / Q_LEN * KV_LEN;
        int keys = KV_LEN - Q_LEN + token % Q_LEN + 1;
        double weights[KV_LEN], sum = 0;
        for (int j = 0; j < keys; j++) {
            double score = 0;
            for (int i = 0; i < D; i++) score += (double)q[row * D + i] * k[((first + j) * KV_HEADS + head) * D + i];
            weights[j] = exp(score / sqrt(D));
            sum += weights[j];
        }
        for (int i = 0; i < D; i++) {
            double o = 0;
            for (int j = 0; j < keys; j++) o += weights[j] / sum * v[((first + j) * KV_HEADS + head) * D + i];
            expected->o[row * D + i] = (float)o;
        }
        expected->lse[row] = (float)log(sum);
    }
}

static void compare(const ropeway_tensor *out, const struct attended *expected, int transposed_lse) {
    struct attended found;
    fetch(queue, &out[0], found.o);
    fetch(queue, &out[1], found.lse);
    for (int i = 0; i < TOKENS * HEADS * D; i++) CLOSE(found.o[i], expected->o[i], 1e-6);
    for (int i = 0; i < TOKENS * HEADS; i++) {
        int token = i / HEADS, head = i % HEADS;
        int at = transposed_lse ? (token / Q_LEN * HEADS + head) * Q_LEN + token % Q_LEN : i;
        CLOSE(found.lse[at], expected->lse[i], 1e-5);
    }
}

/* [batch, heads, length, d] as it lies in [batch, length, heads, d]. */
static ropeway_tensor by_heads(int heads, int length) {
    ropeway_tensor t = F32(4, SEQUENCES, heads, length, D);
    const uint64_t strides[4] = {(uint64_t)(length * heads * D), D, (uint64_t)(heads * D), 1};
    memcpy(t.strides, strides, sizeof(strides));
    t.layout = ROPEWAY_LAYOUT_STRIDED;
    return t;
}

static void attention(void) {
    static float q[TOKENS * HEADS * D], k[KEYS * KV_HEADS * D], v[KEYS * KV_HEADS * D], k_cache[KEYS * KV_HEADS * D], v_cache[KEYS * KV_HEADS * D];
    const int32_t cu_q[] = {0, Q_LEN, TOKENS}, cu_kv[] = {0, KV_LEN, KEYS}, kv_lens[] = {KV_LEN, KV_LEN};
    const int32_t block_table[SEQUENCES * BLOCKS] = {2, 0, 3, 1};
    const float scale = 0.125f; /* 1 / sqrt(64), the default */
    struct attended expected;
    ropeway_plan *plan;

    values(q, TOKENS * HEADS * D, 6);
    values(k, KEYS * KV_HEADS * D, 7);
    values(v, KEYS * KV_HEADS * D, 8);
    attend(q, k, v, &expected);
    {
        ropeway_tensor in[3] = {by_heads(HEADS, Q_LEN), by_heads(KV_HEADS, KV_LEN), by_heads(KV_HEADS, KV_LEN)};
        ropeway_tensor out[2] = {by_heads(HEADS, Q_LEN), F32(3, SEQUENCES, HEADS, Q_LEN)};
        ropeway_attention op;
        place(device, queue, &in[0], q);
        place(device, queue, &in[1], k);
        place(device, queue, &in[2], v);
        ROPEWAY_INIT(op);
        op.q = &in[0];
        op.k = &in[1];
        op.v = &in[2];
        op.causal = 1;
        op.return_lse = 1;
        OK(rw->plan_attention(device, &op, NULL, &plan));
        run(plan, in, 3, out, 2);
        compare(out, &expected, 1);
        rw->plan_release(plan);
        drop(in, 3);
        drop(out, 2);
    }
    {
        ropeway_tensor in[5] = {F32(3, TOKENS, HEADS, D), F32(3, KEYS, KV_HEADS, D), F32(3, KEYS, KV_HEADS, D), I32(1, SEQUENCES + 1), I32(1, SEQUENCES + 1)};
        ropeway_tensor out[2] = {F32(3, TOKENS, HEADS, D), F32(2, TOKENS, HEADS)};
        ropeway_attention_varlen op;
        place(device, queue, &in[0], q);
        place(device, queue, &in[1], k);
        place(device, queue, &in[2], v);
        place(device, queue, &in[3], cu_q);
        place(device, queue, &in[4], cu_kv);
        ROPEWAY_INIT(op);
        op.q = &in[0];
        op.k = &in[1];
        op.v = &in[2];
        op.cu_q = &in[3];
        op.cu_kv = &in[4];
        op.scale = &scale;
        op.causal = 1;
        op.return_lse = 1;
        OK(rw->plan_attention_varlen(device, &op, NULL, &plan));
        run(plan, in, 5, out, 2);
        compare(out, &expected, 0);
        rw->plan_release(plan);
        drop(in, 5);
        drop(out, 2);
    }
    for (int block = 0; block < SEQUENCES * BLOCKS; block++) {
        size_t size = BLOCK * KV_HEADS * D;
        memcpy(k_cache + (size_t)block_table[block] * size, k + (size_t)block * size, size * sizeof(float));
        memcpy(v_cache + (size_t)block_table[block] * size, v + (size_t)block * size, size * sizeof(float));
    }
    {
        ropeway_tensor in[6] = {F32(3, TOKENS, HEADS, D), I32(1, SEQUENCES + 1), F32(4, SEQUENCES * BLOCKS, BLOCK, KV_HEADS, D),
                                F32(4, SEQUENCES * BLOCKS, BLOCK, KV_HEADS, D), I32(2, SEQUENCES, BLOCKS), I32(1, SEQUENCES)};
        ropeway_tensor out[2] = {F32(3, TOKENS, HEADS, D), F32(2, TOKENS, HEADS)};
        ropeway_attention_paged op;
        place(device, queue, &in[0], q);
        place(device, queue, &in[1], cu_q);
        place(device, queue, &in[2], k_cache);
        place(device, queue, &in[3], v_cache);
        place(device, queue, &in[4], block_table);
        place(device, queue, &in[5], kv_lens);
        ROPEWAY_INIT(op);
        op.q = &in[0];
        op.cu_q = &in[1];
        op.k_cache = &in[2];
        op.v_cache = &in[3];
        op.block_table = &in[4];
        op.kv_lens = &in[5];
        op.causal = 1;
        op.return_lse = 1;
        OK(rw->plan_attention_paged(device, &op, NULL, &plan));
        run(plan, in, 6, out, 2);
        compare(out, &expected, 0);
        rw->plan_release(plan);
        drop(in, 6);
        drop(out, 2);
    }
}

/* A layer by its steps, and as one op. */
static void moe(void) {
    enum { ROWS = 5, EXPERTS = 4, TOPK = 2, HIDDEN = 16, INTER = 12, SLOTS = ROWS * TOPK };
    float x[ROWS * HIDDEN], logits[ROWS * EXPERTS], gate_up[EXPERTS * 2 * INTER * HIDDEN], down[EXPERTS * HIDDEN * INTER];
    float by_steps[ROWS * HIDDEN], at_once[ROWS * HIDDEN], weights[SLOTS];
    int32_t ids[SLOTS], same_ids[SLOTS];
    ropeway_tensor in[4] = {F32(2, ROWS, HIDDEN), F32(2, ROWS, EXPERTS), F32(3, EXPERTS, 2 * INTER, HIDDEN), F32(3, EXPERTS, HIDDEN, INTER)};
    ropeway_tensor routed[2] = {I32(2, ROWS, TOPK), F32(2, ROWS, TOPK)};
    ropeway_tensor scattered[3] = {F32(2, SLOTS, HIDDEN), I32(1, EXPERTS + 1), I32(1, SLOTS)};
    ropeway_tensor inner = F32(2, SLOTS, INTER), rows = F32(2, SLOTS, HIDDEN), y = F32(2, ROWS, HIDDEN);
    ropeway_tensor whole[2] = {F32(2, ROWS, HIDDEN), I32(2, ROWS, TOPK)};
    ropeway_moe_route route;
    ropeway_expert_scatter scatter;
    ropeway_grouped_gemm first, second;
    ropeway_expert_gather gather;
    ropeway_moe_ffn layer;
    ropeway_plan *plan;
    double largest = 0;

    values(x, ROWS * HIDDEN, 9);
    values(logits, ROWS * EXPERTS, 10);
    values(gate_up, EXPERTS * 2 * INTER * HIDDEN, 11);
    values(down, EXPERTS * HIDDEN * INTER, 12);
    place(device, queue, &in[0], x);
    place(device, queue, &in[1], logits);
    place(device, queue, &in[2], gate_up);
    place(device, queue, &in[3], down);

    ROPEWAY_INIT(route);
    route.logits = &in[1];
    route.topk = TOPK;
    route.score = ROPEWAY_SCORE_SIGMOID;
    route.renormalize = 1;
    OK(rw->plan_moe_route(device, &route, NULL, &plan));
    run(plan, &in[1], 1, routed, 2);
    rw->plan_release(plan);
    fetch(queue, &routed[0], ids);
    fetch(queue, &routed[1], weights);
    for (int t = 0; t < ROWS; t++) {
        double sum = 0;
        for (int s = 0; s < TOPK; s++) sum += 1 / (1 + exp(-logits[t * EXPERTS + ids[t * TOPK + s]]));
        for (int s = 0; s < TOPK; s++) CLOSE(weights[t * TOPK + s], 1 / (1 + exp(-logits[t * EXPERTS + ids[t * TOPK + s]])) / sum, 1e-6);
        for (int e = 0; e < EXPERTS; e++) HOLDS(logits[t * EXPERTS + ids[t * TOPK]] >= logits[t * EXPERTS + e]);
    }

    ROPEWAY_INIT(scatter);
    scatter.x = &in[0];
    scatter.topk_ids = &routed[0];
    scatter.experts = EXPERTS;
    OK(rw->plan_expert_scatter(device, &scatter, NULL, &plan));
    {
        ropeway_tensor inputs[2] = {in[0], routed[0]};
        run(plan, inputs, 2, scattered, 3);
    }
    rw->plan_release(plan);

    ROPEWAY_INIT(first);
    first.a = &scattered[0];
    first.b = &in[2];
    first.expert_offsets = &scattered[1];
    first.activation = ROPEWAY_ACTIVATION_SWIGLU;
    OK(rw->plan_grouped_gemm(device, &first, NULL, &plan));
    {
        ropeway_tensor inputs[3] = {scattered[0], in[2], scattered[1]};
        run(plan, inputs, 3, &inner, 1);
    }
    rw->plan_release(plan);

    ROPEWAY_INIT(second);
    second.a = &inner;
    second.b = &in[3];
    second.expert_offsets = &scattered[1];
    OK(rw->plan_grouped_gemm(device, &second, NULL, &plan));
    {
        ropeway_tensor inputs[3] = {inner, in[3], scattered[1]};
        run(plan, inputs, 3, &rows, 1);
    }
    rw->plan_release(plan);

    ROPEWAY_INIT(gather);
    gather.rows = &rows;
    gather.source = &scattered[2];
    gather.topk_weights = &routed[1];
    OK(rw->plan_expert_gather(device, &gather, NULL, &plan));
    {
        ropeway_tensor inputs[3] = {rows, scattered[2], routed[1]};
        run(plan, inputs, 3, &y, 1);
    }
    rw->plan_release(plan);
    fetch(queue, &y, by_steps);

    ROPEWAY_INIT(layer);
    layer.x = &in[0];
    layer.logits = &in[1];
    layer.w_gate_up = &in[2];
    layer.w_down = &in[3];
    layer.topk = TOPK;
    layer.score = ROPEWAY_SCORE_SIGMOID;
    layer.renormalize = 1;
    OK(rw->plan_moe_ffn(device, &layer, NULL, &plan));
    run(plan, in, 4, whole, 2);
    rw->plan_release(plan);
    fetch(queue, &whole[0], at_once);
    fetch(queue, &whole[1], same_ids);
    HOLDS(memcmp(ids, same_ids, sizeof(ids)) == 0);
    for (int i = 0; i < ROWS * HIDDEN; i++) largest = fmax(largest, fabs(by_steps[i]));
    HOLDS(largest > 0.01);
    for (int i = 0; i < ROWS * HIDDEN; i++) CLOSE(at_once[i], by_steps[i], 1e-6 * largest);

    /* An id that is out of range is skipped, and the next synchronise says so. */
    OK(rw->plan_expert_scatter(device, &scatter, NULL, &plan));
    ids[3] = 1000;
    OK(rw->queue_upload(queue, routed[0].buffer, 0, ids, sizeof(ids)));
    {
        ropeway_tensor operands[5] = {in[0], routed[0], scattered[0], scattered[1], scattered[2]};
        execute(device, queue, plan, operands, 5);
    }
    REFUSED(rw->queue_synchronize(queue, ROPEWAY_NO_TIMEOUT), ROPEWAY_ERROR_DATA_OUT_OF_RANGE, "out of range");
    OK(rw->queue_synchronize(queue, ROPEWAY_NO_TIMEOUT));
    rw->plan_release(plan);
    drop(in, 4);
    drop(routed, 2);
    drop(scattered, 3);
    drop(&inner, 1);
    drop(&rows, 1);
    drop(&y, 1);
    drop(whole, 2);
}

/* y = (x w) w as a graph of two executions, bound to other rows and to another y. */
static void graphs(void) {
    enum { SIZE = 16, HALF = 4 };
    float x[2 * HALF * SIZE], w[SIZE * SIZE], y[HALF * SIZE];
    ropeway_tensor all = F32(2, 2 * HALF, SIZE), weight = F32(2, SIZE, SIZE), middle = F32(2, HALF, SIZE), out[2] = {middle, middle};
    ropeway_tensor operands[2][3], other[3];
    const uint32_t first[1] = {0}, last[1] = {2}, beyond[1] = {3}, rows[2] = {0, 2};
    ropeway_execution executions[2];
    ropeway_event *begin, *end;
    ropeway_buffer *workspaces[2];
    ropeway_gemm op;
    ropeway_plan *plan;
    ropeway_graph *graph;
    ropeway_status status;
    uint64_t elapsed;

    values(x, 2 * HALF * SIZE, 13);
    values(w, SIZE * SIZE, 14);
    place(device, queue, &all, x);
    place(device, queue, &weight, w);
    place(device, queue, &middle, NULL);
    place(device, queue, &out[0], NULL);
    place(device, queue, &out[1], NULL);
    ROPEWAY_INIT(op);
    op.a = op.b = &weight;
    OK(rw->plan_gemm(device, &op, NULL, &plan));
    all.shape[0] = HALF;
    operands[0][0] = all;
    operands[0][1] = operands[1][1] = weight;
    operands[0][2] = operands[1][0] = middle;
    operands[1][2] = out[0];
    for (int i = 0; i < 2; i++) {
        workspaces[i] = workspace_of(device, plan);
        ROPEWAY_INIT(executions[i]);
        executions[i].plan = plan;
        executions[i].operands = operands[i];
        executions[i].operand_count = 3;
        executions[i].workspace = workspaces[i];
    }
    operands[1][1].buffer = NULL;
    REFUSED(rw->graph_create(device, executions, 2, &graph), ROPEWAY_ERROR_INVALID_ARGUMENT, "executions[1]: b: found a tensor without a buffer");
    operands[1][1] = weight;
    OK(rw->graph_create(device, executions, 2, &graph));
    rw->plan_release(plan);
    for (int i = 0; i < 2; i++) rw->buffer_release(workspaces[i]);

    for (int turn = 0; turn < 2; turn++) {
        OK(rw->queue_record(queue, &begin));
        OK(rw->queue_replay(queue, graph));
        OK(rw->queue_record(queue, &end));
        OK(rw->event_wait(end, ROPEWAY_NO_TIMEOUT));
        status = rw->event_elapsed(begin, end, &elapsed);
        HOLDS(status == ROPEWAY_OK || status == ROPEWAY_ERROR_UNSUPPORTED);
        rw->event_release(begin);
        rw->event_release(end);
        fetch(queue, &out[turn], y);
        for (int i = 0; i < HALF; i++) {
            double once[SIZE];
            for (int j = 0; j < SIZE; j++) {
                once[j] = 0;
                for (int k = 0; k < SIZE; k++) once[j] += (double)x[((turn * HALF) + i) * SIZE + k] * w[k * SIZE + j];
            }
            for (int j = 0; j < SIZE; j++) {
                double twice = 0;
                for (int k = 0; k < SIZE; k++) twice += once[k] * w[k * SIZE + j];
                CLOSE(y[i * SIZE + j], twice, 1e-5);
            }
        }
        other[0] = all;
        other[0].offset = HALF * SIZE;
        OK(rw->graph_rebind(graph, 0, first, other, 1));
        OK(rw->graph_rebind(graph, 1, last, &out[1], 1));
    }
    REFUSED(rw->graph_rebind(graph, 2, first, other, 1), ROPEWAY_ERROR_INVALID_ARGUMENT, "execution: found 2");
    REFUSED(rw->graph_rebind(graph, 0, beyond, other, 1), ROPEWAY_ERROR_INVALID_ARGUMENT, "operand: found 3");
    REFUSED(rw->graph_rebind(graph, 0, NULL, other, 1), ROPEWAY_ERROR_INVALID_ARGUMENT, "indices: found NULL");
    /* Fewer rows in one operand only. */
    other[0].shape[0] = 2;
    REFUSED(rw->graph_rebind(graph, 0, rows, other, 1), ROPEWAY_ERROR_INVALID_ARGUMENT, "m = ");
    rw->graph_release(graph);
    drop(&all, 1);
    drop(&weight, 1);
    drop(&middle, 1);
    drop(out, 2);
}

/* What a plan declares, it does: equal bits from run to run, and from batch to batch. */
static void determinism(void) {
    enum { ROWS = 40, WIDTH = 256 };
    static float x[ROWS * WIDTH], w[WIDTH * WIDTH], y[2][ROWS * WIDTH];
    ropeway_tensor operands[3] = {F32(2, ROWS, WIDTH), F32(2, WIDTH, WIDTH), F32(2, ROWS, WIDTH)};
    ropeway_gemm op;
    ropeway_plan *plan;
    ropeway_determinism declared;
    for (size_t i = 0; i < ROWS * WIDTH; i++) x[i] = (float)sin((double)i);
    for (size_t i = 0; i < WIDTH * WIDTH; i++) w[i] = (float)cos((double)i);
    place(device, queue, &operands[0], x);
    place(device, queue, &operands[1], w);
    place(device, queue, &operands[2], NULL);
    ROPEWAY_INIT(op);
    op.a = &operands[0];
    op.b = &operands[1];
    OK(rw->plan_gemm(device, &op, NULL, &plan));
    declared = plan_info(plan).determinism;
    HOLDS(declared <= ROPEWAY_DETERMINISM_BATCH_INVARIANT);
    for (int turn = 0; turn < 2; turn++) {
        execute(device, queue, plan, operands, 3);
        fetch(queue, &operands[2], y[turn]);
    }
    if (declared >= ROPEWAY_DETERMINISM_RUN_TO_RUN) HOLDS(memcmp(y[0], y[1], sizeof(y[0])) == 0);
    if (declared >= ROPEWAY_DETERMINISM_BATCH_INVARIANT) {
        operands[0].shape[0] = operands[2].shape[0] = 3;
        execute(device, queue, plan, operands, 3);
        fetch(queue, &operands[2], y[1]);
        HOLDS(memcmp(y[0], y[1], 3 * WIDTH * sizeof(float)) == 0);
    }
    rw->plan_release(plan);
    drop(operands, 3);
}

/* One queue's work after another's, by an event; a copy to pinned memory that is taken up again only when it is done. */
static void order(void) {
    enum { WORDS = 1 << 16 };
    ropeway_queue *copies;
    ropeway_buffer *from, *to;
    ropeway_pinned *pinned;
    ropeway_event *filled;
    const uint32_t *words;
    OK(rw->queue_create(device, ROPEWAY_QUEUE_TRANSFER, &copies));
    OK(rw->buffer_create(device, 4 * WORDS, &from));
    OK(rw->buffer_create(device, 4 * WORDS, &to));
    OK(rw->pinned_create(device, 4 * WORDS, &pinned));
    HOLDS(rw->pinned_size(pinned) == 4 * WORDS && rw->buffer_size(from) == 4 * WORDS);
    words = rw->pinned_data(pinned);
    HOLDS(words[WORDS - 1] == 0);
    for (unsigned value = 1; value < 20; value++) {
        OK(rw->queue_fill(queue, from, 0, 4 * WORDS, (uint8_t)value));
        OK(rw->queue_record(queue, &filled));
        OK(rw->queue_flush(queue));
        OK(rw->queue_wait(copies, filled));
        rw->event_release(filled);
        OK(rw->queue_copy(copies, from, 0, to, 0, 4 * WORDS));
        OK(rw->queue_download(copies, to, 0, 4 * WORDS, pinned));
        OK(rw->pinned_wait(pinned, ROPEWAY_NO_TIMEOUT));
        HOLDS(words == rw->pinned_data(pinned));
        for (size_t i = 0; i < WORDS; i += 997) HOLDS(words[i] == value * 0x01010101u);
    }
    OK(rw->pinned_wait(pinned, 0));
    REFUSED(rw->queue_download(copies, to, 0, 4 * WORDS + 1, pinned), ROPEWAY_ERROR_INVALID_ARGUMENT, "from: slice");
    /* What was refused leaves the memory usable. */
    rw->pinned_release(pinned);
    OK(rw->pinned_create(device, 4, &pinned));
    REFUSED(rw->queue_download(copies, to, 0, 8, pinned), ROPEWAY_ERROR_INVALID_ARGUMENT, "");
    OK(rw->queue_download(copies, to, 0, 4, pinned));
    OK(rw->pinned_wait(pinned, ROPEWAY_NO_TIMEOUT));
    HOLDS(*(const uint32_t *)rw->pinned_data(pinned) == 19 * 0x01010101u);
    rw->pinned_release(pinned);
    rw->buffer_release(from);
    rw->buffer_release(to);
    rw->queue_release(copies);
}

int main(int argc, char **argv) {
    ropeway_memory_use memory;
    begin();
    selector = argc > 1 ? argv[1] : "cpu";
    OK(rw->device_open(selector, NULL, &device));
    OK(rw->queue_create(device, ROPEWAY_QUEUE_COMPUTE, &queue));
    names();
    gemm();
    forced();
    in_place();
    masked();
    attention();
    moe();
    graphs();
    determinism();
    order();
    OK(rw->queue_synchronize(queue, ROPEWAY_NO_TIMEOUT));
    ROPEWAY_INIT(memory);
    OK(rw->device_memory(device, &memory));
    HOLDS(memory.used == 0 && memory.total > 0);
    rw->queue_release(queue);
    rw->device_release(device);
    return 0;
}
