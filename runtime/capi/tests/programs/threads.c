/* One device, one plan and one queue in eight threads at once, each with a queue of its own besides; messages stay apart. */
#define _POSIX_C_SOURCE 200809L /* barriers */

#include "check.h"

#include <pthread.h>

enum { THREADS = 8, ROUNDS = 20, M = 24, N = 16, K = 40 };

static ropeway_device *device;
static ropeway_queue *shared;
static ropeway_plan *plan;
static pthread_barrier_t together;

static void round_trip(ropeway_queue *queue, unsigned seed) {
    static const double exact = 0; /* The products are multiples of 2^-14 below 2^6: f32 holds them. */
    float a[M * K], b[K * N], d[M * N];
    ropeway_tensor operands[3] = {F32(2, M, K), F32(2, K, N), F32(2, M, N)};
    values(a, M * K, seed);
    values(b, K * N, seed + 1);
    place(device, queue, &operands[0], a);
    place(device, queue, &operands[1], b);
    place(device, queue, &operands[2], NULL);
    execute(device, queue, plan, operands, 3);
    fetch(queue, &operands[2], d);
    for (int i = 0; i < M; i++) {
        for (int j = 0; j < N; j++) {
            double sum = 0;
            for (int k = 0; k < K; k++) sum += (double)a[i * K + k] * b[k * N + j];
            CLOSE(d[i * N + j], sum, exact);
        }
    }
    drop(operands, 3);
}

static void *work(void *number) {
    unsigned seed = (unsigned)(uintptr_t)number;
    char expected[64];
    ropeway_queue *own;
    ropeway_plan *other;
    ropeway_tensor a = F32(2, (int)seed + 1, 8), b = F32(2, 8, 4);
    ropeway_gemm op;

    pthread_barrier_wait(&together);
    HOLDS(strcmp(rw->last_error(), "") == 0);
    REFUSED(rw->queue_create(device, 100 + seed, &own), ROPEWAY_ERROR_INVALID_ARGUMENT, "kind");
    OK(rw->queue_create(device, ROPEWAY_QUEUE_COMPUTE, &own));
    for (unsigned i = 0; i < ROUNDS; i++) {
        round_trip(own, seed * 1000 + i);
        round_trip(shared, seed * 1000 + 500 + i);
    }
    /* Threads plan at once, too: two the same problem, others different ones. */
    ROPEWAY_INIT(op);
    op.a = &a;
    op.b = &b;
    a.shape[0] = seed / 2 + 1;
    OK(rw->plan_gemm(device, &op, NULL, &other));
    rw->plan_release(other);
    OK(rw->queue_synchronize(own, ROPEWAY_NO_TIMEOUT));
    rw->queue_release(own);
    snprintf(expected, sizeof(expected), "kind: found %u", 100 + seed);
    HOLDS(strstr(rw->last_error(), expected) != NULL);
    return NULL;
}

int main(int argc, char **argv) {
    pthread_t threads[THREADS];
    ropeway_tensor a = F32(2, M, K), b = F32(2, K, N);
    ropeway_gemm op;
    begin();
    OK(rw->device_open(argc > 1 ? argv[1] : "cpu", NULL, &device));
    OK(rw->queue_create(device, ROPEWAY_QUEUE_COMPUTE, &shared));
    ROPEWAY_INIT(op);
    op.a = &a;
    op.b = &b;
    OK(rw->plan_gemm(device, &op, NULL, &plan));
    HOLDS(pthread_barrier_init(&together, NULL, THREADS) == 0);
    for (uintptr_t i = 0; i < THREADS; i++) HOLDS(pthread_create(&threads[i], NULL, work, (void *)i) == 0);
    for (int i = 0; i < THREADS; i++) HOLDS(pthread_join(threads[i], NULL) == 0);
    OK(rw->queue_synchronize(shared, ROPEWAY_NO_TIMEOUT));
    HOLDS(strcmp(rw->last_error(), "") == 0);
    rw->plan_release(plan);
    rw->queue_release(shared);
    rw->device_release(device);
    pthread_barrier_destroy(&together);
    return 0;
}
