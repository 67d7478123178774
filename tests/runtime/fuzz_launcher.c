/* Fuzzing of what the launcher parses: steps (records, the table of verbs, operations on the environment) and options.
 *
 * Linked with the launcher's own wire.c, steps.c, options.c and user/environment.c; what would act on the system is replaced by
 * stubs that read every field. LLVMFuzzerTestOneInput fits libFuzzer and AFL++; main is a driver of its own that mutates a seed:
 *   fuzz_launcher SEED ROUNDS NUMBER */
#include "../../runtime/launcher/shifter.h"
#include <setjmp.h>

static jmp_buf refused;
static volatile size_t seen;
struct caller caller;
int image_fd = -1, root_fd = -1, mount_fd = -1;

void fail(const char *format, ...)
{
    seen += strlen(format);
    longjmp(refused, 1);
}

void fail_errno(const char *what, const char *which)
{
    seen += strlen(what) + strlen(which);
    longjmp(refused, 1);
}

void say(const char *format, ...) { seen += strlen(format); }

void *grow(void *old, size_t size)
{
    void *memory = realloc(old, size ? size : 1);
    if (!memory)
        abort();
    return memory;
}

static void read_all(char **f)
{
    for (; *f; f++)
        seen += strlen(*f);
}
#define STUB(name) void name(char **f) { read_all(f); }
STUB(image_open) STUB(rootless_fuse) STUB(mount_local) STUB(planner_answer) STUB(root_begin) STUB(root_join) STUB(mount_tmpfs) STUB(file_mkdir)
STUB(file_write) STUB(file_copy) STUB(file_symlink) STUB(mount_bind) STUB(mount_bind_of_user) STUB(mount_overlay)
STUB(mount_proc) STUB(mount_change) STUB(disk_make) STUB(hook_root) STUB(hook_user) STUB(root_pivot)
STUB(command_directory) STUB(command_run)
void become_user(void) {}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
    static char *environment[] = {"A=1", "PATH=/bin", "EMPTY=", "ODD", NULL}, *none[] = {NULL};
    struct record step = {0};
    caller.environment = environment;
    caller.arguments = none;
    char *data = malloc(size + 1), *volatile fields = NULL;
    memcpy(data, input, size);
    if (setjmp(refused) == 0)
        for (size_t at = 0, used; at < size && (used = record_in_place(&step, data + at, size - at)); at += used) {
            fields = (char *)step.field;
            step_run(&step);
        }
    (void)fields;
    /* the same bytes as words of a command line */
    char *words[64] = {"shifter"}, *at = data;
    int count = 1;
    data[size ? size - 1 : 0] = 0;
    for (; count < 63 && at < data + size; at += strlen(at) + 1)
        words[count++] = at;
    struct options options = {0};
    optind = 0;
    if (setjmp(refused) == 0)
        seen += (size_t)options_parse(count, words, &options);
    free(options.request.data);
    free(step.field);
    free(data);
    return 0;
}

#ifdef DRIVER
const char *__asan_default_options(void) { return "detect_leaks=0"; }

int main(int count, char **words)
{
    static uint8_t seed[1 << 16], input[1 << 16];
    FILE *file = count == 4 ? fopen(words[1], "rb") : NULL;
    if (!file)
        return 2;
    size_t size = fread(seed, 1, sizeof seed / 2, file);
    uint64_t state = strtoull(words[3], NULL, 10) * 2 + 1;
#define RANDOM(limit) ((state ^= state << 13, state ^= state >> 7, state ^= state << 17) % (limit))
    for (long round = strtol(words[2], NULL, 10); round > 0; round--) {
        size_t length = RANDOM(4) ? size : RANDOM(size + 1);
        memcpy(input, seed, length);
        for (size_t changes = RANDOM(8); changes && length; changes--) {
            size_t at = RANDOM(length);
            switch (RANDOM(4)) {
            case 0: input[at] = (uint8_t)RANDOM(256); break;
            case 1: input[at] ^= (uint8_t)(1u << RANDOM(8)); break;
            case 2: memmove(input + at, input + at + 1, length - at - 1); length--; break;
            default: input[at] = "\0\377\1=-"[RANDOM(5)]; break;
            }
        }
        LLVMFuzzerTestOneInput(input, length);
    }
    printf("%zu\n", (size_t)seen);
    return 0;
}
#endif
