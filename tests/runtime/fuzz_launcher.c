/* Fuzzing of all that the launcher parses, by libFuzzer: its own sources, but for main.c, on a kernel of the fuzzer's own.
 *
 * FUZZ_TARGET names what the input is, after a byte of switches (1: rootless, 2: verbose), a byte with the length of the tape of
 * the kernel's answers, and the tape:
 *   plan         the planner's stream of steps, received and executed
 *   cache        a file of the plan cache, for the request in `fuzz_request_of_cache`, judged and executed
 *   config       udiRoot.conf
 *   options      the words of a command line, each with a NUL
 *   caller       the caller's environment, each variable with a NUL: what a start takes from it
 *   environment  the same, an empty word, and operations of three words on it: one letter, name, value
 * The sources are included, not linked, so that what they remember can be forgotten after each input. */
#include "fuzz_kernel.h"

#define CONFIG_PATH "/etc/shifter/udiRoot.conf"
#define LIBEXEC_PATH "/usr/libexec/shifter"
#define PYTHON_PATH "/usr/bin/python3"
#define VERSION "26.11.0"

#include "../../runtime/launcher/cache.c"
#include "../../runtime/launcher/caller.c"
#include "../../runtime/launcher/config.c"
#include "../../runtime/launcher/disk.c"
#include "../../runtime/launcher/fail.c"
#include "../../runtime/launcher/files.c"
#include "../../runtime/launcher/hold.c"
#include "../../runtime/launcher/hooks.c"
#include "../../runtime/launcher/image.c"
#include "../../runtime/launcher/mounts.c"
#include "../../runtime/launcher/options.c"
#include "../../runtime/launcher/planner.c"
#include "../../runtime/launcher/root.c"
#include "../../runtime/launcher/steps.c"
#include "../../runtime/launcher/user/command.c"
#include "../../runtime/launcher/user/environment.c"
#include "../../runtime/launcher/user/rootless.c"
#include "../../runtime/launcher/wire.c"

static void fuzz_forget(void)
{
    static char *environment[] = {"A=1", "PATH=/bin", "EMPTY=", "ODD", NULL};
    fake_fresh_memory();
    caller = (struct caller){.uid = 65534, .gid = 65534, .directory = "/srv/me", .privileged = true};
    caller.environment = environment;
    caller.arguments = fake_none;
    fake_filesystem_uid = fake_filesystem_gid = 0;
    fake_environ = fake_none;
    fake_group_total = -1;
    fake_powerless = false;
    dropped = false;
    list = NULL;
    count = 0;
    content = NULL;
    directory = -1;
    at = 0;
    covered_fd = root_fd = image_fd = mount_fd = talk = -1;
    root_on_host = false;
    own_count = 0;
    child = -1;
}

/* The words in data, which ends with NUL; more than most are left out. */
static char **fuzz_words_in(char *data, size_t size, int most)
{
    char **words = grow(NULL, ((size_t)most + 1) * sizeof *words), *end = data + size;
    int found = 0;
    for (; found < most && data < end; data += strlen(data) + 1)
        words[found++] = data;
    words[found] = NULL;
    return words;
}

static void fuzz_execute(bool (*next)(struct record *))
{
    struct record step = {0};
    while (next(&step))
        step_run(&step);
}

static void fuzz_plan(char *data, size_t size)
{
    (void)data, (void)size;
    planner_attach(9);
    fuzz_execute(planner_next);
}

static const char fuzz_request_of_cache[] = "\7\0\0\0user\0" "1";

static void fuzz_cache(char *data, size_t size)
{
    struct record request = {.data = (char *)fuzz_request_of_cache, .size = sizeof fuzz_request_of_cache};
    (void)data, (void)size;
    if (cache_open(&request))
        fuzz_execute(cache_next);
}

static void fuzz_config(char *data, size_t size)
{
    (void)data, (void)size;
    fake_read_text(config_loop_mount());
}

static void fuzz_options(char *data, size_t size)
{
    struct options options = {0};
    char **words = fuzz_words_in(data, size, 64);
    int number = 0;
    while (words[number])
        number++;
    optind = 0;
    if (number)
        fake_read_texts(words + options_parse(number, words, &options));
    fake_read_bytes(options.request.data, options.request.size);
}

static void fuzz_caller(char *data, size_t size)
{
    struct record request = {0};
    caller_take(fuzz_words_in(data, size, 64));
    planner_request(&request);
    fake_read_bytes(request.data, request.size);
    planner_start(&request);
}

static void fuzz_environment(char *data, size_t size)
{
    char **words = fuzz_words_in(data, size, 256), **operation = words;
    while (*operation && **operation)
        operation++;
    bool more = *operation != NULL;
    *operation = NULL;
    caller.environment = words;
    environment_start();
    for (operation += more; operation[0] && operation[1] && operation[2]; operation += 3)
        switch (*operation[0]) {
        case 's': environment_set(operation + 1); break;
        case 'd': environment_default(operation + 1); break;
        case 'p': environment_prepend(operation + 1); break;
        case 'a': environment_append(operation + 1); break;
        case 'u': environment_unset(operation + 1); break;
        default: environment_clear((char *[]){operation[1], operation[2], NULL});
        }
    fake_read_texts(environment_done());
}

static const struct {
    const char *name;
    void (*run)(char *data, size_t size);
} fake_targets[] = {
    {"plan", fuzz_plan},       {"cache", fuzz_cache},   {"config", fuzz_config},
    {"options", fuzz_options}, {"caller", fuzz_caller}, {"environment", fuzz_environment},
};

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
    static size_t target = SIZE_MAX;
    for (size_t i = 0; target == SIZE_MAX; i++) {
        assert(i < sizeof fake_targets / sizeof *fake_targets);
        if (strcmp(getenv("FUZZ_TARGET"), fake_targets[i].name) == 0)
            target = i;
    }
    if (size < 2 || size - 2 < input[1])
        return 0;
    fuzz_forget();
    caller.rootless = input[0] & 1;
    caller.verbose = input[0] & 2;
    fake_tape = input + 2;
    fake_tape_left = input[1];
    size -= 2 + fake_tape_left;
    char *data = fake_realloc(NULL, size + !size);
    memcpy(data, fake_tape + fake_tape_left, size);
    bool words = target >= 3;
    if (words)
        data[size - !!size] = 0;
    fake_given = (uint8_t *)data;
    fake_given_left = fake_given_size = size;
    fake_configuration = fake_targets[target].run == fuzz_cache ? "system=x\nloopMount=/loop\n" : NULL;
    if (setjmp(fake_ended) == 0)
        fake_targets[target].run(data, size);
    return 0;
}
