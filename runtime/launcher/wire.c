/* Records: a 32-bit little-endian length, then NUL-terminated fields. */
#include "shifter.h"

static uint32_t length_of(const unsigned char *head)
{
    return head[0] | (uint32_t)head[1] << 8 | (uint32_t)head[2] << 16 | (uint32_t)head[3] << 24;
}

/* Put a record of these fields (the last is NULL) behind those that buffer holds already. */
void record_add(struct record *buffer, const char *const *fields)
{
    size_t size = 0;
    for (int i = 0; fields[i]; i++)
        size += strlen(fields[i]) + 1;
    if (size > RECORD_LIMIT || buffer->size + 4 + size > RECORD_LIMIT)
        fail("too long: %.40s...: options and SHIFTER variables together may have %u bytes", fields[1], RECORD_LIMIT);
    if (buffer->size + 4 + size > buffer->room) {
        buffer->room = (buffer->size + 4 + size) * 2;
        buffer->data = grow(buffer->data, buffer->room);
    }
    char *at = buffer->data + buffer->size;
    buffer->size += 4 + size;
    for (int byte = 0; byte < 4; byte++)
        *at++ = (char)(size >> 8 * byte);
    for (int i = 0; fields[i]; i++)
        at = stpcpy(at, fields[i]) + 1;
}

void send_all(int socket, const void *data, size_t size)
{
    while (size) {
        ssize_t sent = send(socket, data, size, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0)
            fail_errno("the planner does not listen", "send");
        data = (const char *)data + sent;
        size -= (size_t)sent;
    }
}

/* data -> field, count; false when malformed. */
static bool record_split(struct record *record)
{
    record->count = 0;
    if (record->size == 0 || record->size > RECORD_LIMIT || record->data[record->size - 1] != 0)
        return false;
    for (const char *at = record->data; at < record->data + record->size; at += strlen(at) + 1)
        record->count++;
    if (record->count > FIELD_LIMIT)
        return false;
    record->field = grow(record->field, ((size_t)record->count + 1) * sizeof *record->field);
    char *at = record->data;
    for (int i = 0; i < record->count; i++, at += strlen(at) + 1)
        record->field[i] = at;
    record->field[record->count] = NULL;
    return true;
}

/* The record at the start of data, which stays the caller's; its size with the length in front, or 0 when it is malformed. */
size_t record_in_place(struct record *record, char *data, size_t size)
{
    if (size < 4)
        return 0;
    size_t length = length_of((const unsigned char *)data);
    record->data = data + 4;
    record->size = length;
    return length <= size - 4 && record_split(record) ? length + 4 : 0;
}

/* Exactly size bytes; false when the other side ended before the first. */
static bool receive_all(int socket, void *data, size_t size)
{
    size_t done = 0;
    while (done < size) {
        ssize_t got = recv(socket, (char *)data + done, size - done, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && errno != ECONNRESET)
            fail_errno("cannot hear the planner", "recv");
        if (got <= 0 && done == 0)
            return false;
        if (got <= 0)
            fail("the planner ended within a step: see its message above");
        done += (size_t)got;
    }
    return true;
}

bool record_receive(struct record *record, int socket)
{
    unsigned char head[4];
    if (!receive_all(socket, head, sizeof head))
        return false;
    uint32_t size = length_of(head);
    if (size == 0 || size > RECORD_LIMIT)
        fail("malformed step of %u bytes from the planner: report this", size);
    if (size > record->room) {
        record->room = size;
        record->data = grow(record->data, record->room);
    }
    record->size = size;
    if (!receive_all(socket, record->data, size) || !record_split(record))
        fail("malformed step from the planner: report this");
    return true;
}
