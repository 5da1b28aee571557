/*
 * A layer of a network, d = relu(a b^T + bias), on any device: planned once for up to 64 rows, run for 64 and for 5, then as a graph.
 *
 *     cc -std=c11 gemm.c $(pkg-config --cflags --libs ropeway) -o gemm && ./gemm opencl
 *
 * Valid as C11 and as C++17.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include <ropeway.h>

enum { M = 64, N = 48, K = 96 };

static const ropeway_api *ropeway;

/* A program that goes on after a failure reads the status; this one only runs if all is well. */
static void check(ropeway_status status, const char *call) {
    if (status != ROPEWAY_OK) {
        fprintf(stderr, "%s: status %d: %s\n", call, (int)status, ropeway->last_error());
        exit(1);
    }
}
#define CHECK(function, ...) check(ropeway->function(__VA_ARGS__), #function)

/* What every backend has, or why it has nothing. */
static void list_devices(void) {
    ropeway_probe *probe;
    size_t b, d;
    CHECK(probe, &probe);
    for (b = 0; b < ropeway->probe_backend_count(probe); b++) {
        ropeway_backend_info backend;
        ROPEWAY_INIT(backend);
        CHECK(probe_backend, probe, b, &backend);
        if (backend.reason != NULL) {
            printf("%-8s %s; %s\n", backend.name, backend.reason, backend.remedy);
        }
        for (d = 0; d < backend.device_count; d++) {
            ropeway_device_info info;
            ROPEWAY_INIT(info);
            CHECK(probe_device, probe, b, d, &info);
            printf("%-8s %s\n", info.selector, info.name);
        }
    }
    ropeway->probe_release(probe);
}

static ropeway_tensor matrix(const ropeway_buffer *buffer, uint64_t rows, uint64_t columns) {
    ropeway_tensor tensor;
    ROPEWAY_INIT(tensor);
    tensor.buffer = buffer;
    tensor.dtype = ROPEWAY_DTYPE_F32;
    tensor.rank = 2;
    tensor.shape[0] = rows;
    tensor.shape[1] = columns;
    return tensor;
}

static ropeway_buffer *upload(ropeway_device *device, ropeway_queue *queue, const float *data, size_t count) {
    ropeway_buffer *buffer;
    CHECK(buffer_create, device, count * sizeof(float), &buffer);
    CHECK(queue_upload, queue, buffer, 0, data, count * sizeof(float));
    return buffer;
}

/* The largest difference from plain loops. */
static double difference(const float *a, const float *b, const float *bias, const float *d, size_t rows) {
    double worst = 0;
    size_t i, j, k;
    for (i = 0; i < rows; i++) {
        for (j = 0; j < N; j++) {
            double sum = bias[j];
            for (k = 0; k < K; k++) {
                sum += (double)a[i * K + k] * b[j * K + k];
            }
            worst = fmax(worst, fabs(fmax(sum, 0) - d[i * N + j]));
        }
    }
    return worst;
}

int main(int argc, char **argv) {
    static float a[M * K], b[N * K], bias[N], d[M * N];
    const char *selector = argc > 1 ? argv[1] : "cpu";
    ropeway_device *device;
    ropeway_queue *queue;
    ropeway_buffer *on_a, *on_b, *on_bias, *on_d, *workspace = NULL;
    ropeway_tensor operands[4];
    ropeway_gemm layer;
    ropeway_plan *plan;
    ropeway_plan_info info;
    ropeway_execution execution;
    ropeway_graph *graph;
    const uint32_t places[2] = {0, 3};
    ropeway_tensor rebound[2];
    double worst;
    size_t i;

    ropeway = ropeway_get_api(ROPEWAY_API_VERSION);
    if (ropeway == NULL) {
        fprintf(stderr, "the library is older than this program\n");
        return 1;
    }
    list_devices();
    for (i = 0; i < M * K; i++) a[i] = (float)(i * 7 % 13) - 6;
    for (i = 0; i < N * K; i++) b[i] = (float)(i * 5 % 11) - 5;
    for (i = 0; i < N; i++) bias[i] = (float)i;

    CHECK(device_open, selector, NULL, &device);
    CHECK(queue_create, device, ROPEWAY_QUEUE_COMPUTE, &queue);
    on_a = upload(device, queue, a, M * K);
    on_b = upload(device, queue, b, N * K);
    on_bias = upload(device, queue, bias, N);
    CHECK(buffer_create, device, sizeof(d), &on_d);
    operands[0] = matrix(on_a, M, K);
    operands[1] = matrix(on_b, N, K);
    operands[2] = matrix(on_bias, N, 1);
    operands[2].rank = 1;
    operands[3] = matrix(on_d, M, N);

    ROPEWAY_INIT(layer);
    layer.a = &operands[0];
    layer.b = &operands[1];
    layer.bias = &operands[2];
    layer.trans_b = 1;
    layer.activation = ROPEWAY_ACTIVATION_RELU;
    CHECK(plan_gemm, device, &layer, NULL, &plan);
    ROPEWAY_INIT(info);
    CHECK(plan_info, plan, &info);
    printf("\n%s", info.description);
    if (info.workspace_bytes > 0) {
        CHECK(buffer_create, device, info.workspace_bytes, &workspace);
    }

    ROPEWAY_INIT(execution);
    execution.plan = plan;
    execution.operands = operands;
    execution.operand_count = 4;
    execution.workspace = workspace;
    CHECK(queue_execute, queue, &execution);
    CHECK(queue_read_blocking, queue, on_d, 0, d, sizeof(d));
    worst = difference(a, b, bias, d, M);

    /* The same plan with fewer rows. */
    operands[0].shape[0] = operands[3].shape[0] = 5;
    CHECK(queue_fill, queue, on_d, 0, sizeof(d), 0);
    CHECK(queue_execute, queue, &execution);
    CHECK(queue_read_blocking, queue, on_d, 0, d, sizeof(d));
    worst = fmax(worst, difference(a, b, bias, d, 5));

    /* Recorded, then bound to other rows of a and replayed. */
    CHECK(graph_create, device, &execution, 1, &graph);
    rebound[0] = operands[0];
    rebound[0].offset = 10 * K;
    rebound[1] = operands[3];
    CHECK(graph_rebind, graph, 0, places, rebound, 2);
    CHECK(queue_replay, queue, graph);
    CHECK(queue_read_blocking, queue, on_d, 0, d, 5 * N * sizeof(float));
    worst = fmax(worst, difference(a + 10 * K, b, bias, d, 5));
    CHECK(queue_synchronize, queue, ROPEWAY_NO_TIMEOUT);
    printf("largest difference from plain loops: %g\n", worst);

    ropeway->graph_release(graph);
    ropeway->plan_release(plan);
    ropeway->buffer_release(workspace);
    ropeway->buffer_release(on_a);
    ropeway->buffer_release(on_b);
    ropeway->buffer_release(on_bias);
    ropeway->buffer_release(on_d);
    ropeway->queue_release(queue);
    ropeway->device_release(device);
    /* All values are small whole numbers: nothing is rounded. */
    return worst == 0 ? 0 : 1;
}
