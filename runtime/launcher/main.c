/* A start: take the caller, make the namespace, and execute the planner's steps until one becomes the command. */
#include "shifter.h"

/* setupRoot, which is root already, sends steps on descriptor 0; the user they are for: uid, gid, groups (comma-separated). */
static _Noreturn void execute_for_root(char **who)
{
    struct record step = {0};
    caller.uid = (uid_t)strtoul(who[0], NULL, 10);
    caller.gid = (gid_t)strtoul(who[1], NULL, 10);
    caller.group_count = 0;
    caller.groups = grow(NULL, (strlen(who[2]) + 1) * sizeof *caller.groups);
    for (char *word; (word = strsep(&who[2], ","));)
        if (*word)
            caller.groups[caller.group_count++] = (gid_t)strtoul(word, NULL, 10);
    if (caller.uid == 0 || setgroups((size_t)caller.group_count, caller.groups) < 0)
        fail("cannot prepare an environment for uid %s: %s", who[0], caller.uid ? strerror(errno) : "name a user who is not root");
    planner_attach(0);
    while (planner_next(&step))
        step_run(&step);
    _exit(0);
}

int main(int count, char **words)
{
    static char *nothing[] = {NULL};
    char **environment = environ;
    struct options options = {0};
    struct record step = {0};

    environ = nothing; /* no library call may read what the caller has set */
    if (count < 1 || count > 100000)
        fail("too many words, or none, on the command line");
    caller_take(environment);
    if (count != 5 || caller.uid != 0 || strcmp(words[1], "--steps") != 0)
        caller.arguments = words + options_parse(count, words, &options);
    bool help = options.given['h'] || options.given['H'] || options.given['C'];
    caller.rootless = options.given['u'] || !caller.privileged;
    if (caller.privileged && (help || caller.rootless))
        become_user();
    if (help)
        planner_help(options.given['C'] ? "check" : "help", options.given['H'] ? "version" : "main");
    if (caller.uid == 0 && count == 5 && strcmp(words[1], "--steps") == 0)
        execute_for_root(words + 2);
    if (caller.uid == 0)
        fail("running as root: a container is a user's: run shifter as that user");
    caller_signals(true);
    if (caller.rootless)
        rootless_enter();
    planner_request(&options.request);
    bool (*next)(struct record *) = planner_next;
    if (!options.given['P'] && !caller.rootless && cache_open(&options.request))
        next = cache_next;
    else
        planner_start(&options.request);
    while (next(&step))
        step_run(&step);
    return 0;
}
