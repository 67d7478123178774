/* The command's environment: operations on the caller's, so that a plan does not depend on what else the caller has set. */
#include "../shifter.h"

static char **list; /* NAME=VALUE, NULL-terminated */
static size_t count;

/* What a C library withholds from setuid programs, on purpose the same with each library and without the setuid bit: it is the
 * host's, and its LD_LIBRARY_PATH or TMPDIR would be wrong in the container. */
static bool withheld(const char *entry)
{
    static const char *const beginnings[] = {"GCONV_PATH=", "GETCONF_DIR=", "GLIBC_TUNABLES=", "HOSTALIASES=", "LD_",
        "LOCALDOMAIN=", "LOCPATH=", "MALLOC_TRACE=", "NIS_PATH=", "NLSPATH=", "RESOLV_HOST_CONF=", "RES_OPTIONS=", "TMPDIR=",
        "TZDIR="};
    for (size_t i = 0; i < sizeof beginnings / sizeof *beginnings; i++)
        if (strncmp(entry, beginnings[i], strlen(beginnings[i])) == 0)
            return true;
    return false;
}

void environment_start(void)
{
    size_t all = 0;
    while (caller.environment[all])
        all++;
    list = grow(NULL, (all + 1) * sizeof *list);
    for (char **entry = caller.environment; *entry; entry++)
        if (!withheld(*entry))
            list[count++] = *entry;
    list[count] = NULL;
}

static bool matches(const char *entry, const char *pattern)
{
    char name[4096];
    size_t size = strcspn(entry, "=");
    if (size >= sizeof name)
        return false;
    memcpy(name, entry, size);
    name[size] = 0;
    return fnmatch(pattern, name, 0) == 0;
}

static char **find(const char *name)
{
    size_t size = strlen(name);
    for (char **entry = list; *entry; entry++)
        if (strncmp(*entry, name, size) == 0 && (*entry)[size] == '=')
            return entry;
    return NULL;
}

static void put(const char *name, const char *first, const char *separator, const char *second)
{
    size_t size = strlen(name) + strlen(first) + strlen(separator) + strlen(second) + 2;
    char **entry = find(name), *text = grow(NULL, size);
    snprintf(text, size, "%s=%s%s%s", name, first, separator, second);
    if (!entry) {
        list = grow(list, (count + 2) * sizeof *list);
        entry = &list[count++];
        list[count] = NULL;
    }
    *entry = text;
}

/* envclear: patterns of the names to keep */
void environment_clear(char **patterns)
{
    size_t kept = 0;
    for (size_t i = 0; i < count; i++) {
        bool keep = false;
        for (int p = 0; patterns[p] && !keep; p++)
            keep = matches(list[i], patterns[p]);
        if (keep)
            list[kept++] = list[i];
    }
    list[count = kept] = NULL;
}

/* envunset: pattern */
void environment_unset(char **f)
{
    size_t kept = 0;
    for (size_t i = 0; i < count; i++)
        if (!matches(list[i], f[0]))
            list[kept++] = list[i];
    list[count = kept] = NULL;
}

/* envset, envdefault, envprepend, envappend: name, value */
void environment_set(char **f)
{
    put(f[0], f[1], "", "");
}

void environment_default(char **f)
{
    if (!find(f[0]))
        put(f[0], f[1], "", "");
}

/* The value of a variable, "" when it is not set. */
const char *environment_value(const char *name)
{
    char **entry = find(name);
    return entry ? *entry + strlen(name) + 1 : "";
}

void environment_prepend(char **f)
{
    const char *old = environment_value(f[0]);
    put(f[0], f[1], *old ? ":" : "", old);
}

void environment_append(char **f)
{
    const char *old = environment_value(f[0]);
    put(f[0], old, *old ? ":" : "", f[1]);
}

char **environment_done(void)
{
    return list;
}
