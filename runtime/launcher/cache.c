/* The plan cache: what the planner streamed for the same request before. A file of it holds the request itself, so that equal
 * names are not enough, and the identity of each file that the plan was computed from. Written by runtime/keep.py. */
#include "shifter.h"

char cache_name[17];
static int directory = -1;
static char *content;
static size_t content_size, at;

/* FNV-1a; a clash costs a plan its place, nothing else. */
static uint64_t name_of(const struct record *request)
{
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < request->size; i++)
        hash = (hash ^ (unsigned char)request->data[i]) * 0x100000001b3u;
    return hash;
}

static bool load(void)
{
    char path[4096];
    struct stat status;
    const char *loop_mount = config_loop_mount();
    if (!*loop_mount || snprintf(path, sizeof path, "%s/plans", loop_mount) >= (int)sizeof path)
        return false;
    directory = host_directory(path);
    if (directory < 0 || fstat(directory, &status) < 0 || status.st_uid != 0 || status.st_mode & 077)
        return false;
    content = config_read(directory, cache_name, O_NOFOLLOW, &content_size);
    return content != NULL;
}

static bool unchanged(const char *path, const char *identity)
{
    char now[160] = "absent";
    struct stat s;
    if (stat(path, &s) == 0)
        snprintf(now, sizeof now, "%ju:%ju:%jd:%jd.%09ld:%jd.%09ld", (uintmax_t)s.st_dev, (uintmax_t)s.st_ino,
                 (intmax_t)s.st_size, (intmax_t)s.st_mtim.tv_sec, s.st_mtim.tv_nsec, (intmax_t)s.st_ctim.tv_sec,
                 s.st_ctim.tv_nsec);
    return strcmp(now, identity) == 0;
}

/* Whether a plan for exactly this request is there and still true; it is then read by cache_next. */
bool cache_open(const struct record *request)
{
    struct record record = {0};
    snprintf(cache_name, sizeof cache_name, "%016" PRIx64, name_of(request));
    if (!load())
        return false;
    at = record_in_place(&record, content, content_size);
    if (!at || record.count != 3 || strcmp(record.field[0], "plan") != 0 || strcmp(record.field[1], program_version) != 0 ||
        strtoll(record.field[2], NULL, 10) < (long long)time(NULL))
        return false;
    if (content_size - at < request->size || memcmp(content + at, request->data, request->size) != 0)
        return false;
    for (at += request->size;;) {
        size_t size = record_in_place(&record, content + at, content_size - at);
        if (!size || record.count < 1)
            return false;
        if (strcmp(record.field[0], "needs") != 0)
            return true;
        if (record.count != 3 || !unchanged(record.field[1], record.field[2]))
            return false;
        at += size;
    }
}

bool cache_next(struct record *step)
{
    if (at == content_size)
        return false;
    size_t size = record_in_place(step, content + at, content_size - at);
    if (!size)
        fail("malformed plan in the cache: start again");
    at += size;
    return true;
}

void cache_distrust(void)
{
    if (content && directory >= 0)
        unlinkat(directory, cache_name, 0);
}
