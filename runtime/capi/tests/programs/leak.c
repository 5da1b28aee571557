/* Forgets buffers, of which the stack may still hold the last one: what watches the other programs must find the others. */
#include "check.h"

int main(void) {
    ropeway_device *device;
    ropeway_buffer *buffer;
    begin();
    OK(rw->device_open("cpu", NULL, &device));
    for (int i = 0; i < 10; i++) OK(rw->buffer_create(device, 1000, &buffer));
    rw->device_release(device);
    return 0;
}
